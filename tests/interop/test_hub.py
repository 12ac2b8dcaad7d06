"""Sharing agents: a folder in place of a repository, and a Hub that keeps its repositories in folders."""

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

import lightning_ppo
from lightning_ppo import PPO, cli
from lightning_ppo.support.errors import CheckpointError, ConfigError
from tests.kit.once import once

SMALL = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "rollout.num_steps": 16,
    "update": {"epochs": 1, "minibatch_size": 32},
    "rollouts_per_epoch": 1,
    "total_env_steps": 64,
    "evaluation": {"episodes": 0, "final_episodes": 2},
    "compile": False,
}
OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        lightning_ppo.train(SMALL | {"run_dir": str(folder / "run")})

    return once(tmp_path_factory, "shared run", make) / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A Hub whose repositories are folders in the one that is returned, behind the functions of its package."""
    root = tmp_path / "hub"

    def create_repo(repo_id, *, private, exist_ok):
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        (root / f"{repo_id}.private").write_text(str(private))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(*, repo_id, folder_path):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(repo_id, filename, *, revision):
        if not (root / repo_id / filename).is_file():
            raise OSError(f"404 Client Error.\n\nEntry Not Found for url: {repo_id}/{filename} at {revision}")
        return str(root / repo_id / filename)

    functions = {"create_repo": create_repo, "upload_folder": upload_folder, "hf_hub_download": hf_hub_download}
    package = types.ModuleType("huggingface_hub")
    vars(package).update(functions)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return root


def trained(run_dir: Path) -> PPO:
    return PPO.load_from_checkpoint(run_dir / "checkpoints" / "last.ckpt")


def card_of(folder: Path) -> tuple[dict, str]:
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_an_agent_goes_to_the_hub_and_comes_back(run_dir, hub, tmp_path, capsys):
    assert cli.main(["push", str(run_dir), "me/cartpole", "--no-video", "--private"]) == 0
    assert "pushed the agent of last.ckpt to https://huggingface.co/me/cartpole" in capsys.readouterr().out
    names = {path.name for path in (hub / "me" / "cartpole").iterdir()}
    assert names == {"agent.ckpt", "config.yaml", "summary.json", "README.md"}
    assert (hub / "me" / "cartpole.private").read_text() == "True"
    model = PPO.from_hub("me/cartpole")
    np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], trained(run_dir).predict(OBSERVATIONS)[0])

    assert cli.main(["pull", "me/cartpole", "--output", str(tmp_path / "agent")]) == 0
    assert f"evaluate {tmp_path / 'agent' / 'agent.ckpt'}" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "agent" / "agent.ckpt"), "--episodes", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1
    assert cli.main(["pull", "me/cartpole", "--output", str(tmp_path / "agent")]) == 2  # it is in use


def test_the_card_says_what_the_run_has_come_to(run_dir, tmp_path):
    assert cli.main(["push", str(run_dir), str(tmp_path), "--no-video"]) == 0
    metadata, text = card_of(tmp_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert metadata["library_name"] == "lightning-ppo" and "CartPole-v1" in metadata["tags"]
    (result,) = metadata["model-index"][0]["results"]
    value = f"{summary['eval_return_mean']:.2f} +/- {summary['eval_return_std']:.2f}"
    assert result["metrics"][0]["value"] == value and result["dataset"]["name"] == "CartPole-v1"
    assert f"| environment steps | {summary['env_steps']} |" in text and f'PPO.from_hub("{tmp_path}")' in text
    assert PPO.from_hub(str(tmp_path)).env_steps == summary["env_steps"]


@pytest.mark.docs
def test_an_episode_is_filmed(run_dir, tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    pytest.importorskip("pygame", reason="needs the extra video")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert cli.main(["push", str(run_dir), str(tmp_path)]) == 0
    assert (tmp_path / "replay.mp4").stat().st_size > 500 and "`replay.mp4`" in card_of(tmp_path)[1]


def test_what_cannot_be_filmed_is_said(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert cli.main(["push", str(run_dir), str(tmp_path)]) == 0
    assert "no video: " in capsys.readouterr().out
    assert not (tmp_path / "replay.mp4").exists() and "replay.mp4" not in card_of(tmp_path)[1]


class ConnectError(Exception):
    """What an HTTP client raises, which is no OSError."""


def unreachable(*arguments, **settings):
    raise ConnectError("Name or service not known")


def test_mistakes_are_one_line(run_dir, hub, tmp_path, monkeypatch, capsys):
    assert cli.main(["push", str(tmp_path), "me/nothing"]) == 2
    assert "push the directory of a run that has finished" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"^me/nothing: 404 Client Error") as error:
        PPO.from_hub("me/nothing", revision="v1")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(sys.modules["huggingface_hub"], "create_repo", unreachable)
    assert cli.main(["push", str(run_dir), "me/nothing", "--no-video"]) == 1
    assert "error: me/nothing: Name or service not known" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"there is no agent\.ckpt in this folder"):
        PPO.from_hub(str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-ppo\[hub\]'"):
        PPO.from_hub("me/cartpole")
