"""Files and class paths of the time when all modules lay in one folder."""

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.cli import main
from lightning_ppo.settings.moved import MOVED, new_path
from lightning_ppo.settings.trust import check_names
from lightning_ppo.support.checkpoint_files import read_checkpoint
from lightning_ppo.support.errors import CheckpointError
from lightning_ppo.support.signature import key_path
from tests.kit.paths import DATA, ROOT

RUNS = ("plain", "named", "lstm", "overlap", "signed")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The runs that data/make_before_rooms.sh has made, and the key that signed one of them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    key_path().parent.mkdir(parents=True)
    key_path().write_bytes(b"k" * 32)
    with tarfile.open(DATA / "before_rooms.tar.xz") as archive:
        # filters came with Python 3.11.4
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "before_rooms"


def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("name", RUNS)
def test_an_agent_of_before_plays_as_it_did(name, runs, capsys):
    assert main(["evaluate", checkpoint(runs / name), "--episodes", "3"]) == 0
    found, expected = json.loads(capsys.readouterr().out), json.loads((runs / name / "evaluated.json").read_text())
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_before_is_resumed_and_reported(name, runs, capsys):
    arguments = [f"run_dir={runs / name}", "resume=last", "total_env_steps=320"]
    assert main(["train", *arguments]) == 0, capsys.readouterr().err
    summary = json.loads((runs / name / "summary.json").read_text())
    assert summary["iterations"] == 5 and 256 < summary["env_steps"] <= 320
    assert not re.findall(r"lightning_ppo\.(?!update|run)[\w.]+", (runs / name / "config.yaml").read_text())
    assert main(["report", str(runs / name)]) == 0
    assert summary["env_id"] in (runs / name / "report.html").read_text()


def test_agents_of_before_are_exported(runs):
    for name in ("named", "lstm"):
        assert main(["export", checkpoint(runs / name), "--format", "torch"]) == 0
        torch.export.load(runs / name / "checkpoints" / "last.pt2")


def test_modules_of_before_are_loaded(runs):
    model = PPO.load_from_checkpoint(checkpoint(runs / "named"))
    assert f"{type(model.objective).__module__}" == "lightning_ppo.update.policy_objectives"
    assert model.hparams["objective"] == "lightning_ppo.update.policy_objectives.KLPenalty"
    assert RolloutDataModule.load_from_checkpoint(checkpoint(runs / "overlap")).num_envs == 2


def test_a_signature_is_that_of_the_names_as_they_were_written(runs):
    content = read_checkpoint(checkpoint(runs / "signed"))
    now = check_names(content, "file")
    assert content["config"]["callbacks"] == ["lightning_ppo.callbacks.EnvStepsProgressBar"]
    assert now["config"]["callbacks"] == ["lightning_ppo.update.progress_bar.EnvStepsProgressBar"]
    key_path().write_bytes(b"x" * 32)
    with pytest.raises(CheckpointError, match=r"--trust lightning_ppo\.update\.progress_bar\.EnvStepsProgressBar"):
        check_names(content, "file")


def test_every_class_of_before_has_a_place():
    for path in (DATA / "classes_before_rooms.txt").read_text().split():
        assert new_path(path) is not None, path
    assert new_path("lightning_ppo.update.ppo.PPO") is None and new_path("lightning_ppo.module.Nothing") is None


@pytest.mark.parametrize(
    ("setting", "new"),
    [
        ("callbacks=[lightning_ppo.recording.RecordVideo]", "lightning_ppo.run.recording.RecordVideo"),
        ("objective=lightning_ppo.policy_objectives.Clip", "lightning_ppo.update.policy_objectives.Clip"),
        ("loss_terms=[lightning_ppo.loss_terms.DualClip]", "lightning_ppo.update.loss_terms.DualClip"),
        ("policy.encoder=lightning_ppo.networks.NatureCNN", "lightning_ppo.policy.images.NatureCNN"),
        ("policy.core=lightning_ppo.recurrence.RecurrentCore", "lightning_ppo.policy.recurrence.RecurrentCore"),
    ],
)
def test_a_path_of_before_is_an_error_that_names_the_new_one(setting, new, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", setting, "total_env_steps=64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {setting.partition('=')[0]}: ") and line.endswith(f"has moved; name {new}")


def test_the_changelog_has_the_table():
    text = (ROOT / "CHANGELOG.md").read_text()
    for former, modules in MOVED.items():
        new = ", ".join(f"`{module}`" for module in modules)
        assert f"| `{former}` | {new} |" in text
