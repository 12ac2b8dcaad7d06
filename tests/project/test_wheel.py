"""The package as `pip install` brings it: built, installed into a new environment, used from an empty folder."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import lightning_ppo
from tests.kit.once import once
from tests.kit.paths import ROOT
from tests.kit.wheel import COMMAND, TINY, archives, installed

pytestmark = pytest.mark.docs
__all__ = ["archives", "installed"]  # fixtures


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory) -> Path:
    """Train from the config of that name, and return the run directory."""

    def train(folder: Path) -> None:
        installed("train", "cartpole", *TINY, "total_env_steps=128", "run_dir=run", folder=folder)

    return once(tmp_path_factory, "trained", train) / "run"


@pytest.mark.representative
def test_the_archives_hold_the_package_and_nothing_of_the_workshop(archives):
    with zipfile.ZipFile(archives.wheel) as file:
        names = set(file.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        assert f"Version: {lightning_ppo.__version__}\n" in file.read(metadata).decode()
    package = ROOT / "lightning_ppo"
    ours = {f"lightning_ppo/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert ours <= names and "lightning_ppo/py.typed" in names
    assert any(name.endswith("/page.css") for name in names) and any(name.endswith("/page.js") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert any(name.endswith(f"/{config.relative_to(ROOT / 'configs').as_posix()}") for name in names), config
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lightning_ppo"}
    with tarfile.open(archives.sdist) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert inside >= {"README.md", "LICENSE", "pyproject.toml", "lightning_ppo/py.typed", "configs/cartpole.yaml"}


def test_the_installed_package_is_the_one_that_is_imported(installed):
    shown = installed.run("python", "-c", "import lightning_ppo; print(lightning_ppo.__file__)").stdout
    assert Path(shown.strip()).is_relative_to(installed.programs.parent)


def test_help_names_the_command_and_what_it_does(installed):
    shown = installed("--help").stdout
    assert shown.startswith(f"usage: {' '.join(COMMAND)} ")
    names = {line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line.strip()}
    assert names >= {"train", "evaluate", "report", "export", "import-sb3", "doctor", "configs"}


def test_configs_are_listed(installed):
    lines = installed("configs").stdout.splitlines()
    for config in (ROOT / "configs").rglob("*.yaml"):
        name = config.relative_to(ROOT / "configs").with_suffix("").as_posix()
        assert any(line.split() and line.split()[0] == name for line in lines), name


def test_a_run_is_trained_from_a_bare_name(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["env_id"] == "CartPole-v1" and 64 < summary["env_steps"] <= 128
    assert summary["versions"]["lightning-ppo"] == lightning_ppo.__version__


def test_a_config_in_the_current_folder_wins(installed, tmp_path):
    assert "id: CartPole-v1" in installed("train", "cartpole", "--print-config", folder=tmp_path).stdout
    (tmp_path / "cartpole.yaml").write_text("env: {id: Pendulum-v1}\n")
    assert "id: Pendulum-v1" in installed("train", "cartpole", "--print-config", folder=tmp_path).stdout


MY_ENV = """
import gymnasium
from gymnasium import spaces

class MyEnv(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample() * 0, float(action), self.steps == 5, False, {}
"""


EVERYWHERE = ["rollout.processes=2", "rollout.overlap=true", "env.backend=async"]
RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]


@pytest.mark.parametrize("called", [["lightning-ppo"], ["python", "-m", "lightning_ppo"]], ids=["command", "module"])
@pytest.mark.parametrize("settings", [EVERYWHERE, RANKS], ids=["processes", "ranks"])
def test_an_environment_in_the_current_folder_is_found_in_every_process(called, settings, installed, tmp_path):
    """In the trainer's own, which evaluates, in those that collect, in those of the copies there, in those of ranks."""
    (tmp_path / "my_env.py").write_text(MY_ENV)
    arguments = ["train", *TINY, "env.id=my_env:MyEnv", "total_env_steps=128", "run_dir=run", *settings]
    installed.run(*called, *arguments, folder=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["env_id"] == "my_env:MyEnv"
    assert summary["world_size"] == (2 if settings is RANKS else 1)
    assert 0.0 <= summary["eval_return_mean"] <= 5.0
    if settings is RANKS:
        result = json.loads(installed.run(*called, "evaluate", "run/checkpoints/last.ckpt", folder=tmp_path).stdout)
        assert result["length_mean"] == 5.0


def test_training_from_python(installed, tmp_path):
    settings = dict(item.split("=") for item in TINY)
    code = f"""
import yaml, lightning_ppo
settings = {{key: yaml.safe_load(value) for key, value in {settings!r}.items()}}
summary = lightning_ppo.train({{"env.id": "Pendulum-v1", "total_env_steps": 64, "run_dir": "run", **settings}})
assert summary["iterations"] == 1 and summary["env_id"] == "Pendulum-v1"
"""
    installed.run("python", "-c", code, folder=tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_run_is_resumed(installed, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = json.loads((trained / "summary.json").read_text())
    installed("train", "run_dir=run", "resume=last", "total_env_steps=320", folder=tmp_path)
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert before["iterations"] == 2 and after["iterations"] == 5
    assert after["env_steps"] > before["env_steps"]


def test_a_checkpoint_is_evaluated(installed, trained):
    result = json.loads(installed("evaluate", str(trained / "checkpoints" / "last.ckpt"), "--episodes", "3").stdout)
    assert result["episodes"] == 3 and 5.0 <= result["return_mean"] <= 500.0


def test_a_checkpoint_is_exported(installed, trained, tmp_path):
    installed(
        "export", str(trained / "checkpoints" / "last.ckpt"), "--format", "torch", "--output", "a.pt2", folder=tmp_path
    )
    agent = torch.export.load(tmp_path / "a.pt2").module(check_guards=False)
    (actions,) = agent(torch.zeros(3, 4))
    assert actions.shape == (3,) and set(actions.tolist()) <= {0, 1}


def test_a_run_is_reported(installed, trained, tmp_path):
    installed("report", str(trained), "--output", "report.html", folder=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "CartPole-v1" in page and "<style" in page and "<script" in page
