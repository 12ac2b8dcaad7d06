"""The package as `pip install` brings it: built, installed into a new environment, used from an empty folder.

The wheel is built from the sdist, so that both are tested. The new environment sees the packages of this one, all but
this project: nothing is downloaded. About a minute.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import lightning_ppo
from tests.kit.once import once
from tests.kit.paths import ROOT

pytestmark = pytest.mark.docs

COMMAND = ["lightning-ppo"]
"""How the installed command is called; the first word lies beside the new environment's interpreter."""

TINY = [
    *("env.num_envs=2", "rollout.num_steps=32", "update.epochs=1", "update.minibatch_size=32", "rollouts_per_epoch=1"),
    *("evaluation.episodes=1", "evaluation.final_episodes=1", "trainer.enable_progress_bar=false"),
]


class Archives(NamedTuple):
    """What is published."""

    sdist: Path
    wheel: Path


class Installed(NamedTuple):
    """A new environment with the wheel in it, and an empty folder to work in."""

    programs: Path
    folder: Path

    def __call__(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess:
        """Run the command with arguments; its output is text."""
        return self.run(*COMMAND, *arguments, folder=folder)

    def run(self, program: str, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess:
        """Run a program of the environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIGHTNING_PPO"))}
        environment = {**kept, "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [str(self.programs / program), *arguments]
        where = folder or self.folder
        finished = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=200)
        assert finished.returncode == 0, f"{' '.join(arguments)}: {finished.stderr[-2000:]}"
        return finished


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr[-2000:]


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Archives:
    dist = once(tmp_path_factory, "build", build) / "dist"
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return Archives(sdist, wheel)


def build(folder: Path) -> None:
    """Build from a copy of the sources, in which nothing lies but what would be committed."""
    sources, dist = folder / "sources", folder / "dist"
    dist.mkdir()
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ":!benchmarks/results"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    code = f"import setuptools.build_meta as backend; backend.build_sdist({str(dist)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, check=True, timeout=100)
    (sdist,) = dist.glob("*.tar.gz")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", dist, sdist)


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> Installed:
    def install(root: Path) -> None:
        """Install the wheel, and only then let the environment see the packages of this one: pip sees none of them."""
        venv.create(root, with_pip=False)
        paths = paths_of(root)
        pip("--python", Path(paths["scripts"]) / "python", "install", "--no-index", "--no-deps", archives.wheel)
        # a plain path: the .pth files that lie there, such as that of an editable install, are not read
        here = dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
        (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(here) + "\n")

    root = once(tmp_path_factory, "environment", install)
    return Installed(Path(paths_of(root)["scripts"]), tmp_path_factory.mktemp("empty"))


def paths_of(root: Path) -> dict[str, str]:
    return sysconfig.get_paths(vars={"base": str(root), "platbase": str(root)})


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
