"""`tune` keeps what is faster, measures trainings that leave nothing behind, and a run ends with advice that fits."""

import numpy as np
import pytest
import torch

from lightning_ppo.cli import main
from lightning_ppo.run import advice, tuning
from lightning_ppo.run.tuning import Trial, tune
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import EnvironmentFault

TINY = ("env.num_envs=2", "rollout.num_steps=8", "update.minibatch_size=8", "policy.hidden_sizes=[4]")


def tuned(monkeypatch, times, groups, seconds=60.0, compiling=None):
    """Return the trials, in order, where overrides multiply the time of an iteration by `times`."""

    def measure(config, overrides):
        if any(times[override] is None for override in overrides):
            raise EnvironmentFault("has no such thing")
        compiled = (compiling or {}).get(overrides, 0.0)
        whole = float(np.prod([times[override] for override in overrides]))
        return Trial(overrides, 0.0, 0.0, whole, compiled)

    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.setattr(tuning, "_candidates", lambda config: (config, groups))
    return [*tune(load([], ["total_env_steps=409600"]), seconds)]  # 100 iterations


def test_each_setting_is_tried_with_those_that_have_proved_faster(monkeypatch):
    times = {"a": 0.5, "b": 1.2, "c": 0.9, "d": 0.8, "e": 0.97}
    trials = tuned(monkeypatch, times, [["a"], ["b"], ["c", "d"], ["e"]])
    expected = [(), ("a",), ("a", "b"), ("a", "c"), ("a", "d"), ("a", "d", "e"), (), ("a", "d")]
    assert [trial.overrides for trial in trials] == expected


def test_what_fails_and_what_there_is_no_time_for_is_a_row(monkeypatch):
    trials = tuned(monkeypatch, {"a": None, "b": 2.0}, [["a"], ["b"]])
    assert [trial.failure for trial in trials] == ["", "has no such thing", ""]
    trials = tuned(monkeypatch, {"a": 0.5}, [["a"]], seconds=0.0)
    assert [trial.overrides for trial in trials] == [(), ("a",)] and "not tried" in trials[1].failure


@pytest.mark.parametrize(("compiling", "taken"), [(30.0, True), (60.0, False)])
def test_compiling_has_to_pay_within_the_run(compiling, taken, monkeypatch):
    trials = tuned(monkeypatch, {"compile=true": 0.5}, [["compile=true"]], compiling={("compile=true",): compiling})
    assert (len(trials) > 2) == taken  # measured again only where it is taken


def test_a_cache_that_the_first_trial_has_filled_is_no_gain_of_the_others(monkeypatch):
    trials = tuned(monkeypatch, {"a": 1.0}, [["a"]], compiling={(): 20.0, ("a",): 1.0})
    assert trials[1].compile_seconds == 20.0


def test_a_trial_is_a_training_that_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "TRIAL_SECONDS", 0.0)
    threads = torch.get_num_threads()
    settings = ["env.id=Pendulum-v1", *TINY, "compile=false", "optimizer.learning_rate=0.001"]
    assert main(["tune", *settings, "--seconds", "0"]) == 0
    shown = capsys.readouterr().out
    assert [*tmp_path.iterdir()] == [] and torch.get_num_threads() == threads
    assert "nothing that was tried is clearly faster" in shown and "rollout.processes=2 " in shown
    (row,) = (line for line in shown.splitlines() if line.startswith("as they are"))
    assert float(row.split()[3].replace(",", "")) > 0  # steps/s
    trial = tuning.measure(load([], settings), ("OMP_NUM_THREADS=2", "env.backend=sync"))
    assert 0 < trial.collect_seconds + trial.update_seconds < trial.iteration_seconds
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("overrides", "there", "expected"),
    [
        (["env.id=HalfCheetah-v5"], "1.2.5", True),
        (["env.id=HalfCheetah-v5"], None, False),
        (["env.id=Ant-v5"], "1.2.5", False),
        (["env.id=HalfCheetah-v5", "env.kwargs={ctrl_cost_weight: 0.2}"], "1.2.5", False),
        (["env.id=HalfCheetah-v5", "env.timeout=3"], "1.2.5", False),
    ],
)
def test_envpool_is_tried_for_tasks_that_are_the_same(overrides, there, expected, monkeypatch):
    monkeypatch.setattr(tuning, "installed", lambda package: there)
    assert tuning._has_pool(load([], overrides)) == expected


def test_only_new_runs_are_tuned(capsys):
    assert main(["tune", "resume=auto", "run_dir=nowhere"]) == 2
    assert "resume: tune measures" in capsys.readouterr().err


SUMMARY = {"collect_seconds": 71.0, "update_seconds": 29.0, "evaluate_seconds": 0.0, "compile_seconds": 0.0}
SUMMARY |= {"world_size": 1, "optimizer_steps": 100_000}


@pytest.mark.parametrize(
    ("overrides", "changes", "stepped", "expected"),
    [
        ([], {}, "sync", "collecting took 71% of the time: rollout.processes=4 may help"),
        (["env.num_envs=2"], {}, "sync", "rollout.processes=2"),
        ([], {"world_size": 2}, "sync", "rollout.processes=2"),
        ([], {"world_size": 4}, "sync", ""),
        ([], {}, "async", ""),
        ([], {}, "", ""),
        (["rollout.processes=2"], {}, "sync", ""),
        (["rollout.overlap=true"], {}, "sync", ""),
        ([], {"collect_seconds": 7.1, "update_seconds": 2.9}, "sync", ""),
        ([], {"collect_seconds": 29.0, "update_seconds": 71.0}, "sync", ""),
        (["compile=false"], {"collect_seconds": 29.0, "update_seconds": 71.0}, "sync", "updating took 71%"),
        (["compile=false"], {"collect_seconds": 9.0, "update_seconds": 71.0, "optimizer_steps": 999}, "sync", ""),
        (["evaluation.every_n_epochs=1"], {"evaluate_seconds": 300.0}, "sync", "evaluating took 75% of the time"),
        ([], {"collect_seconds": 30.0, "evaluate_seconds": 300.0}, "sync", ""),
    ],
)
def test_a_run_ends_with_what_its_times_say(overrides, changes, stepped, expected, monkeypatch):
    monkeypatch.setattr(advice, "usable_cores", lambda: 4)
    line = advice.advice(load([], overrides), SUMMARY | changes, stepped, True)
    assert expected in line and bool(line) == bool(expected)
