"""Loggers that a config names: what they are given, what they write without a server, what is missing."""

import csv
import json
import time
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger

from lightning_ppo.run import training
from lightning_ppo.run.loggers import MetricsCSV, make_loggers
from lightning_ppo.run.run_directory import claim
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError

TINY = [
    *("env.num_envs=4", "rollout.num_steps=32", "update.epochs=1", "rollouts_per_epoch=1", "total_env_steps=300"),
    *("evaluation.episodes=1", "evaluation.final_episodes=0", "policy.hidden_sizes=[8]", "env.id=Pendulum-v1"),
    "trainer.enable_progress_bar=false",
]


def fit(tmp_path: Path, *overrides: str) -> None:
    training.train(load([], [*TINY, f"run_dir={tmp_path / 'run'}", *overrides]))


def test_csv_and_tensorboard_are_there_without_asking():
    assert make_loggers(["csv", "tensorboard"], Path("run")) == []


def test_a_class_path_is_built_with_its_arguments(tmp_path):
    entry = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    (logger,) = make_loggers([entry], Path("run"))
    assert isinstance(logger, CSVLogger) and logger.save_dir == str(tmp_path)


def test_every_logger_gets_the_settings_and_curves_against_env_steps(tmp_path):
    entry = (
        f"{{class_path: pytorch_lightning.loggers.CSVLogger, init_args: {{save_dir: {tmp_path}, name: c, version: v}}}}"
    )
    fit(tmp_path, f"loggers=[{entry}]")
    assert "num_envs: 4" in (tmp_path / "c" / "v" / "hparams.yaml").read_text()
    header, *rows = (tmp_path / "c" / "v" / "metrics.csv").read_text().splitlines()
    steps, losses = header.split(",").index("step"), header.split(",").index("loss/policy")
    assert [row.split(",")[steps] for row in rows if row.split(",")[losses]] == ["128", "256"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("wandbb", "loggers: expected a class path or one of csv, tensorboard, wandb, mlflow, got 'wandbb'; did you"),
        (3, "loggers: expected a class path"),
        ({"init_args": {}}, "loggers: cannot import"),
        ("json.JSONDecoder", "loggers: json.JSONDecoder is no pytorch_lightning.Logger"),
    ],
)
def test_what_is_no_logger_is_explained(entry, message):
    with pytest.raises(ConfigError, match=message):
        make_loggers([entry], Path("run"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.setattr("lightning_ppo.run.loggers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{name} needs the package {name}: pip install 'lightning-ppo\[{name}\]'"):
        make_loggers([name], Path("run"))


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit(tmp_path, "loggers=[wandb]")
    import wandb

    assert wandb.run.project == "lightning_ppo" and wandb.run.name == "run"
    assert wandb.run.config["env"]["num_envs"] == 4
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["trainer/global_step"] == 256 and "loss/policy" in summary and "eval/return_mean" in summary
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(300):  # wandb's own process writes it
        if record.stat().st_size > 1000:
            break
        time.sleep(0.1)
    assert record.stat().st_size > 1000


@pytest.mark.filterwarnings("ignore")
def test_mlflow_without_a_server(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, "loggers=[mlflow]")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lightning_ppo")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert json.loads(found.data.params["env/num_envs"]) == 4
    assert [m.step for m in client.get_metric_history(found.info.run_id, "loss/policy")] == [128, 256]


@pytest.mark.parametrize("ended", [None, 200, 300])
def test_the_row_of_an_evaluation_that_is_made_again_is_written_once(ended, tmp_path):
    """It is made again unless the summary tells of it: a process was killed between the two."""
    first = MetricsCSV(tmp_path / "metrics.csv", lambda: 300)
    first.log_metrics({"loss": 1.0})
    first.log_metrics({"test/return_mean": 5.0})
    if ended is not None:
        (tmp_path / "summary.json").write_text(json.dumps({"env_steps": ended}))
    MetricsCSV(tmp_path / "metrics.csv", lambda: 300, resume_step=300).log_metrics({"test/return_mean": 6.0})
    with open(tmp_path / "metrics.csv", newline="") as file:
        tests = [row["test/return_mean"] for row in csv.DictReader(file)]
    assert tests == (["", "5.0", "6.0"] if ended == 300 else ["", "6.0"])


def test_settings_that_were_half_written_when_a_process_was_killed_do_not_bar_the_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.tmp").write_text("seed")
    for resume in ("resume=auto", "resume=null"):
        claim(tmp_path / "run", load([], [resume, f"run_dir={tmp_path / 'run'}"]))
        assert "seed: 1" in (tmp_path / "run" / "config.yaml").read_text()
        (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        claim(tmp_path / "run", load([], [f"run_dir={tmp_path / 'run'}"]))
