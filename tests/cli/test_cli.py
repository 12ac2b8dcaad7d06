"""The command line: exit codes, one-line errors, the run directory, resuming, signals, evaluating."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback

import lightning_ppo
from lightning_ppo.__main__ import main as command
from lightning_ppo.cli import train
from lightning_ppo.run import training
from lightning_ppo.run.checkpointing import LastCheckpoint
from lightning_ppo.run.stopping import Interrupted
from lightning_ppo.settings.loading import load, to_container, to_yaml
from lightning_ppo.support.errors import ConfigError
from tests.kit.commands import SMALL, rows
from tests.kit.once import once
from tests.kit.paths import ROOT
from tests.kit.preloaded import Command, run_script
from tests.kit.signals import send


def run(*arguments: str) -> int:
    return train.main([*SMALL, *arguments])


@pytest.fixture
def finished(tmp_path, tmp_path_factory) -> Path:
    """A copy of a run that was trained once for all tests."""

    def make(folder: Path) -> None:
        assert run("env.id=Pendulum-v1", f"run_dir={folder / 'run'}", "total_env_steps=300", "seed=7") == 0

    return shutil.copytree(once(tmp_path_factory, "finished", make) / "run", tmp_path / "run")


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
NEEDS = {"cartpole": None, "pendulum": None, "atari": "ale_py", "minigrid_memory": "minigrid"}
"""What a config's environment needs besides the core packages, `mujoco` unless said otherwise."""


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs").with_suffix("")))
def test_every_config_that_comes_along_trains(config, tmp_path):
    needed = NEEDS.get(config.stem, "mujoco")
    if needed:
        pytest.importorskip(needed, reason=f"needs the extra of {needed}")
    settings = ["env.num_envs=2", "rollout.num_steps=32", "update.epochs=1", "update.minibatch_size=32"]
    settings += ["total_env_steps=64", "evaluation.episodes=0", "evaluation.final_episodes=0", "env.stagger=false"]
    assert train.main([str(config), *settings, f"run_dir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["iterations"] == 1 and summary["optimizer_steps"] == 2
    # the protocol belongs to the results of a game
    assert summary["env_id"].startswith("ALE/") == ("frame_skip" in summary["env"].get("atari", {}))


def test_run_directory_holds_what_the_contract_names(finished, capsys):
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "metrics.csv", "summary.json", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {"best.ckpt", "last.ckpt", "last-1.ckpt"} <= {p.name for p in (finished / "checkpoints").iterdir()}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["env_id"] == "Pendulum-v1" and summary["seed"] == 7 and summary["world_size"] == 1
    # 300 steps hold four rollouts of 64; each is 2 epochs x 4 minibatches
    assert (summary["env_steps"], summary["iterations"], summary["optimizer_steps"]) == (256, 4, 32)
    assert summary["eval_episodes"] == 3 and -2000 < summary["eval_return_mean"] < 0
    for name in ("wall_seconds", "fit_seconds", "collect_seconds", "update_seconds", "env_steps_per_second"):
        assert summary[name] > 0
    parts = summary["collect_seconds"] + summary["update_seconds"]
    assert summary["env_steps_per_second"] == pytest.approx(256 / parts)
    assert parts < summary["fit_seconds"] < summary["wall_seconds"]
    assert summary["train_return_mean"] is None  # no episode of 200 steps has ended after 64
    assert summary["versions"]["torch"] == torch.__version__
    saved = load([finished / "config.yaml"])
    assert (saved.env.id, saved.total_env_steps, saved.update.epochs) == ("Pendulum-v1", 300, 2)
    evaluated = [float(row["eval/return_mean"]) for row in rows(finished / "metrics.csv") if row["eval/return_mean"]]
    states = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"].values()
    (best,) = (state for state in states if "best" in str(state.get("best_model_path", "")))
    assert float(best["best_model_score"]) == pytest.approx(max(evaluated)) and max(evaluated) > min(evaluated)


def test_curves_are_logged_against_env_steps(finished):
    metrics = rows(finished / "metrics.csv")
    assert [row["step"] for row in metrics if row["loss/policy"]] == ["64", "128", "192", "256"]
    assert [row["step"] for row in metrics if row["eval/return_mean"]] == ["128", "256"]
    standard = "loss/value loss/entropy update/approximate_kl update/clip_fraction update/explained_variance"
    for name in [*standard.split(), "update/learning_rate", "time/env_steps_per_second", "time/collect_share"]:
        assert all(float(row[name]) == float(row[name]) for row in metrics if row["loss/policy"]), name
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished)).Reload()
    assert [e.step for e in events.Scalars("loss/policy")] == [64, 128, 192, 256]
    csv_values = [float(row["loss/policy"]) for row in metrics if row["loss/policy"]]
    assert [e.value for e in events.Scalars("loss/policy")] == pytest.approx(csv_values)


def test_evaluate_needs_nothing_but_the_checkpoint(finished, tmp_path, monkeypatch, capsys):
    alone = tmp_path / "elsewhere" / "agent.ckpt"
    alone.parent.mkdir()
    alone.write_bytes((finished / "checkpoints" / "last.ckpt").read_bytes())
    monkeypatch.chdir(alone.parent)
    capsys.readouterr()
    assert command(["evaluate", str(alone), "--episodes", "3"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first.keys() == {"return_mean", "return_std", "length_mean", "episodes"}
    assert first["episodes"] == 3 and first["length_mean"] == 200.0
    command(["evaluate", str(alone), "--episodes", "3"])
    assert json.loads(capsys.readouterr().out) == first
    command(["evaluate", str(alone), "--episodes", "3", "--seed", "1"])
    assert json.loads(capsys.readouterr().out) != first


@pytest.mark.parametrize(("told", "threads"), [(None, 1), ("2", 2)])
def test_evaluate_uses_one_thread_unless_told_otherwise(told, threads, finished, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    torch.set_num_threads(2)
    try:
        assert command(["evaluate", str(finished / "checkpoints" / "last.ckpt"), "--episodes", "1"]) == 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_a_used_run_directory_is_refused_and_left_alone(finished, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert run("env.id=Pendulum-v1", f"run_dir={finished}", "total_env_steps=300") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run_dir" in error and "resume=last" in error
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_resume_goes_on_with_the_runs_own_settings(finished, capsys):
    assert train.main([f"run_dir={finished}", "resume=last", "total_env_steps=600"]) == 0
    assert "total_env_steps changes from 300 to 600" in capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["env_steps"], summary["iterations"]) == (576, 9)
    steps = [int(row["step"]) for row in rows(finished / "metrics.csv") if row["loss/policy"]]
    assert steps == list(range(64, 577, 64))  # neither lost nor doubled


def test_resuming_a_finished_run_trains_no_further(finished):
    assert train.main([f"run_dir={finished}", "resume=last"]) == 0
    assert json.loads((finished / "summary.json").read_text())["env_steps"] == 256


def test_rows_after_the_checkpoint_are_written_once(finished):
    with open(finished / "metrics.csv", "a") as file:
        file.write("99999\n")  # a row of an iteration that a crash took back
    assert train.main([f"run_dir={finished}", "resume=last", "total_env_steps=400"]) == 0
    steps = [int(row["step"]) for row in rows(finished / "metrics.csv") if row["loss/policy"]]
    assert steps == list(range(64, 385, 64))


@pytest.mark.parametrize(
    ("override", "message"), [("env.id=CartPole-v1", "env.id: the run to resume has 'Pendulum-v1', not 'CartPole-v1'")]
)
def test_resuming_another_task_is_refused(finished, override, message, capsys):
    assert train.main([f"run_dir={finished}", "resume=last", override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["total_env_step=5"], 2, "total_env_step: unknown setting; did you mean total_env_steps?"),
        (["update.clip_rnge=0.1"], 2, "did you mean update.clip_range?"),
        (["rollout.num_steps=many"], 2, "rollout.num_steps"),
        (["update.minibatch_size=7"], 2, "update.minibatch_size: 7 does not divide"),
        (["rollout.gamma=1.5"], 2, "rollout.gamma: must be at most 1"),
        (["env.id=CartPoule-v1"], 1, "`CartPoule` doesn't exist); did you mean CartPole-v"),
        (["env.id=no_such_module:Env"], 1, "cannot import 'no_such_module'"),
        (["env.id=tests.kit.envs:Hopeful", "env.backend=sync"], 1, "pip install 'lightning-ppo[mujoco]'"),
        (["env.id=tests.kit.envs:Wordy", "env.backend=sync"], 1, "observation space Text"),
        (["trainer.max_epoch=1"], 2, "unknown setting of the Trainer; did you mean trainer.max_epochs?"),
        (["trainer.max_epochs=abc"], 2, "trainer.max_epochs: expected int or null, got 'abc'"),
        (["trainer.deterministic=sometimes"], 2, "trainer.deterministic: expected bool or 'warn' or null"),
        (["callbacks=[lightning.pytorch.callbacks.Timer]"], 2, "name pytorch_lightning.callbacks.Timer"),
        (["trainer.gradient_clip_val=0.5"], 2, "set update.max_grad_norm instead"),
        (["callbacks=[1]"], 2, "callbacks: expected a class path"),
        (["callbacks=[json.JSONDecoder]"], 2, "callbacks: json.JSONDecoder is no pytorch_lightning.Callback"),
        (["seed=5000000000"], 2, "seed: must lie in"),
        (["callbacks=[no.such.Callback]"], 2, "callbacks: cannot import 'no.such.Callback'"),
        (["configs/cartpol.yaml"], 2, "cartpol.yaml: there is no such config; did you mean configs/cartpole.yaml?"),
        (["--verbose"], 2, "--verbose: settings are given as name=value"),
        (["nonsense"], 2, "nonsense: there is no such config; did you mean"),
        (["resume=last"], 2, "needs run_dir"),
        (["resume=/nowhere/last.ckpt"], 2, "there is no checkpoint"),
        (["total_env_steps=10"], 2, "less than one rollout"),
        (["env.id=tests.kit.envs:Bad", "env.kwargs={kind: raises}"], 1, "env 0 raised in step after 3 steps"),
        (["env.id=tests.kit.envs:Bad", "env.kwargs={kind: nan_observation}"], 1, "env 0 returned the observation nan"),
        (["env.id=tests.kit.envs:Bad", "env.kwargs={kind: nan_reward}"], 1, "env 0 returned the reward nan at step 3"),
        (["env.id=tests.kit.envs:Bad", "env.kwargs={kind: wrong_shape}"], 1, "env 0 returned an observation of shape"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run_dir = tmp_path / "run"
    if not any(a.startswith("resume") for a in arguments):
        arguments = [*arguments, f"run_dir={run_dir}"]
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    if code == 2 and "trainer.gradient_clip_val=0.5" not in arguments and "total_env_steps=10" not in arguments:
        assert not run_dir.exists()


def test_debug_shows_where(capsys):
    assert run("env.id=no_such_module:Env", "debug=true") == 1
    assert "Traceback" in capsys.readouterr().err


def test_print_config_can_be_read_back(tmp_path, capsys):
    assert run("seed=9", "optimizer.learning_rate={kind: linear, start: 1e-3, end: 0}", "--print-config") == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    config = load([path])
    assert (config.seed, config.rollout.num_steps) == (9, 16)
    assert config.optimizer.schedule()(0.5) == pytest.approx(5e-4)


def test_help_names_commands_and_configs(capsys):
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "resume=last" in text and "--print-config" in text and "evaluate" in text


def test_fast_dev_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("trainer.fast_dev_run=true", f"run_dir={tmp_path / 'run'}") == 0
    quiet = ["trainer.logger=false", "trainer.callbacks=null"]
    assert run("trainer.fast_dev_run=true", f"run_dir={tmp_path / 'run'}", *quiet) == 0
    assert list(tmp_path.iterdir()) == []


def test_trainings_of_one_process_get_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load([], [*SMALL, "total_env_steps=64"])
    for _ in range(2):
        training.train(config)
    assert len(list((tmp_path / "runs" / "CartPole-v1").iterdir())) == 2


def test_train_returns_its_metrics(tmp_path):
    config = load([], [*SMALL, "total_env_steps=64", f"run_dir={tmp_path / 'run'}"])
    assert training.train(config)["iterations"] == 1


class Epochs(Callback):
    """Counts epochs."""

    count = 0

    def on_train_epoch_end(self, trainer, module):
        self.count += 1


def test_train_takes_a_config_in_every_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(item.split("=") for item in SMALL) | {"total_env_steps": 64}
    numbers = {key: yaml.safe_load(str(value)) for key, value in settings.items()}
    expected = load([], [*SMALL, "total_env_steps=64"])
    (tmp_path / "mine.yaml").write_text(to_yaml(expected))
    nested = {"env": {"num_envs": numbers["env.num_envs"]}} | numbers
    for config in ("mine", tmp_path / "mine.yaml", nested, {"run_dir": "runs/last", **to_container(expected)}):
        epochs = Epochs()
        assert lightning_ppo.train(config, callbacks=[epochs])["iterations"] == 1
        assert epochs.count == 1
    config = {"run_dir": "runs/CartPole-v1", "resume": "last"}
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        lightning_ppo.train(config)
    with pytest.raises(ConfigError, match=r"env\.num_env: unknown setting; did you mean env\.num_envs\?"):
        lightning_ppo.train({"env.num_env": 2})
    with pytest.raises(ConfigError, match="expected plain data"):
        lightning_ppo.train({"env.num_envs": object()})


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--episodes", "0"]])
def test_evaluate_refuses_what_it_cannot_do(arguments, finished, capsys):
    capsys.readouterr()
    assert command(["evaluate", str(finished / "checkpoints" / "last.ckpt"), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_signal_during_the_last_evaluation_still_counts(tmp_path):
    class Interrupt(Callback):
        def on_validation_end(self, trainer, module):
            if module.iterations == 4:
                send(signal.SIGTERM)

    run_dir = tmp_path / "run"
    config = load([], [*SMALL, "env.id=Pendulum-v1", f"run_dir={run_dir}", "total_env_steps=300"])
    build = training.build_trainer

    def with_interrupt(*args):
        trainer = build(*args)
        trainer.callbacks.insert(0, Interrupt())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_trainer", with_interrupt)
        with pytest.raises(Interrupted) as error:
            training.train(config)
    assert error.value.exit_code == 143
    assert torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["ppo"]["env_steps"] == 256
    assert not (run_dir / "summary.json").exists()
    assert train.main([f"run_dir={run_dir}", "resume=last"]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] == 256


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.representative)]
)
def test_signals_finish_the_iteration_save_and_exit(number, code, tmp_path):
    run_dir = tmp_path / "run"
    arguments = [*SMALL, "env.id=Pendulum-v1", f"run_dir={run_dir}", "rollouts_per_epoch=100000"]
    process = Command(run_script, ROOT / "train.py", *arguments)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run_dir / "metrics.csv").exists():
        time.sleep(0.02)
    os.kill(process.pid, number)
    found, _, errors = process.wait(60)
    assert found == code, errors
    assert "Traceback" not in errors
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["ppo"]["env_steps"]
    assert saved == int(rows(run_dir / "metrics.csv")[-1]["step"]) > 0
    assert train.main([f"run_dir={run_dir}", "resume=last", f"total_env_steps={saved + 128}"]) == 0
    steps = [int(row["step"]) for row in rows(run_dir / "metrics.csv") if row["loss/policy"]]
    assert steps == list(range(64, saved + 129, 64))


def test_an_impossible_override_leaves_the_run_as_it_was(finished, capsys):
    before = (finished / "config.yaml").read_bytes()
    assert train.main([f"run_dir={finished}", "resume=last", "policy.hidden_sizes=[32]"]) == 2
    assert "policy.hidden_sizes: the run to resume has [64, 64], not [32]" in capsys.readouterr().err
    assert (finished / "config.yaml").read_bytes() == before
    assert train.main([f"run_dir={finished}", "resume=last", "total_env_steps=400"]) == 0


def test_a_checkpoint_brings_its_settings_into_a_new_run_directory(finished, tmp_path, capsys):
    checkpoint, target = finished / "checkpoints" / "last.ckpt", tmp_path / "continued"
    assert train.main([f"resume={checkpoint}", f"run_dir={target}", "total_env_steps=400"]) == 0
    assert load([target / "config.yaml"]).update.epochs == 2
    assert json.loads((target / "summary.json").read_text())["env_steps"] == 384
    # neither another run's directory nor the folder a copy happens to lie in is written to
    assert train.main([f"resume={checkpoint}", f"run_dir={target}", "total_env_steps=500"]) == 2
    copy = tmp_path / "mine" / "agents" / "copy.ckpt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(checkpoint.read_bytes())
    assert train.main([f"resume={copy}"]) == 2
    assert "is in no run directory" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["agents"]


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(finished, capsys):
    last = finished / "checkpoints" / "last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    assert train.main([f"run_dir={finished}", "resume=last", "total_env_steps=400"]) == 0
    assert f"{last}: damaged" in capsys.readouterr().out
    assert (finished / "checkpoints" / "last.ckpt.damaged").read_bytes() == damaged
    assert json.loads((finished / "summary.json").read_text())["env_steps"] == 384
    steps = [int(row["step"]) for row in rows(finished / "metrics.csv") if row["loss/policy"]]
    assert steps == list(range(64, 385, 64))


def test_auto_starts_goes_on_and_starts_anew_without_a_checkpoint(tmp_path, capsys):
    run_dir = tmp_path / "run"
    arguments = ["env.id=Pendulum-v1", f"run_dir={run_dir}", "resume=auto"]
    assert run(*arguments, "total_env_steps=128") == 0
    assert run(*arguments, "total_env_steps=256") == 0
    steps = [int(row["step"]) for row in rows(run_dir / "metrics.csv") if row["loss/policy"]]
    assert steps == [64, 128, 192, 256]
    for path in (run_dir / "checkpoints").iterdir():
        path.unlink()
    assert run(*arguments, "total_env_steps=192") == 0
    steps = [int(row["step"]) for row in rows(run_dir / "metrics.csv") if row["loss/policy"]]
    assert steps == [64, 128, 192]
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("words")
    assert run("env.id=Pendulum-v1", f"run_dir={foreign}", "resume=auto") == 2
    assert [p.name for p in foreign.iterdir()] == ["chapter.tex"]
    assert run("resume=auto") == 2
    assert "`auto` needs run_dir" in capsys.readouterr().err


def test_checkpoints_are_written_every_so_many_steps(tmp_path):
    run_dir, written = tmp_path / "run", []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, module):
            path = run_dir / "checkpoints" / "last.ckpt"
            written.append(torch.load(path, weights_only=True)["ppo"]["env_steps"] if path.exists() else 0)

    config = load(
        [],
        [*SMALL, "env.id=Pendulum-v1", f"run_dir={run_dir}", "total_env_steps=768", "checkpoint.every_env_steps=200"],
    )
    build = training.build_trainer

    def with_look(*args):
        trainer = build(*args)
        trainer.callbacks.append(Look())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_trainer", with_look)
        training.train(config)
    assert written == [0, 0, 256, 256, 512, 512]  # epochs have 128 steps


def train_until_the_disk_is_full(arguments: list[str]) -> int:
    save = LastCheckpoint.on_train_epoch_end

    def fill(self, *args):
        save(self, *args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    LastCheckpoint.on_train_epoch_end = fill
    return train.main(arguments)


def test_a_full_disk_is_one_line_and_leaves_the_run_resumable(tmp_path):
    """A limit on the size of files stands in for the disk."""
    run_dir = tmp_path / "run"
    arguments = [
        *SMALL,
        "env.id=Pendulum-v1",
        f"run_dir={run_dir}",
        "total_env_steps=256",
        "checkpoint.save_best=false",
    ]
    code, _, errors = Command(train_until_the_disk_is_full, arguments).wait(60)
    assert code == 1
    assert errors.count("\n") == 1 and "last.ckpt: cannot be written: File too large" in errors
    assert not list((run_dir / "checkpoints").glob("*.tmp"))
    assert train.main([f"run_dir={run_dir}", "resume=last"]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] == 256


def test_a_moved_run_keeps_its_best_agent(finished, tmp_path):
    moved = tmp_path / "moved"
    finished.rename(moved)
    path = moved / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    last = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    for name, state in last["callbacks"].items():
        if "best" in str(state.get("best_model_path", "")):
            last["callbacks"][name] = {**state, "best_model_score": torch.tensor(1e9)}
            (score_path,) = state["best_k_models"]
            last["callbacks"][name]["best_k_models"] = {score_path: torch.tensor(1e9)}
            last["callbacks"][name]["kth_value"] = torch.tensor(1e9)
    torch.save(last, moved / "checkpoints" / "last.ckpt")
    assert train.main([f"run_dir={moved}", "resume=last", "total_env_steps=600"]) == 0
    again = torch.load(path, weights_only=True)
    assert again["ppo"]["env_steps"] == content["ppo"]["env_steps"]


def test_the_last_checkpoint_is_that_of_the_end(tmp_path):
    run_dir = tmp_path / "run"
    sparse = ["checkpoint.every_env_steps=1000", "evaluation.every_n_epochs=3", "total_env_steps=400"]
    assert run("env.id=Pendulum-v1", f"run_dir={run_dir}", *sparse) == 0
    assert torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["ppo"]["env_steps"] == 384


def test_optimizer_settings_that_change_on_resuming_are_applied(finished, capsys):
    assert train.main([f"run_dir={finished}", "resume=last", "total_env_steps=400", "optimizer.epsilon=1e-3"]) == 0
    assert "optimizer.epsilon changes" in capsys.readouterr().out
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["eps"] == 1e-3


def test_times_add_up_over_a_resumed_run(finished):
    before = json.loads((finished / "summary.json").read_text())
    assert train.main([f"run_dir={finished}", "resume=last", "total_env_steps=400"]) == 0
    after = json.loads((finished / "summary.json").read_text())
    for name in ("collect_seconds", "update_seconds", "fit_seconds"):
        assert after[name] > before[name]
    speed = after["env_steps"] / (after["collect_seconds"] + after["update_seconds"])
    assert after["env_steps_per_second"] == pytest.approx(speed)


def test_settings_are_judged_together(tmp_path, capsys):
    path = tmp_path / "hundred.yaml"
    path.write_text("update:\n  minibatch_size: 100\n")
    assert train.main(["rollout.num_steps=100", "env.num_envs=1", str(path), "--print-config"]) == 0
    assert train.main([*SMALL, "total_env_steps=10", f"run_dir={tmp_path / 'run'}"]) == 2
    assert not (tmp_path / "run").exists()


def test_a_config_file_asks_for_tracebacks_too(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("debug: true\nenv: {id: no_such_module:Env}\n")
    assert run(str(config)) == 1
    assert "Traceback" in capsys.readouterr().err
