"""The Optuna example: trials are trained, reported, pruned, and kept."""

import importlib.util
from itertools import pairwise

import pytest

from tests.kit.paths import ROOT

pytestmark = pytest.mark.docs

optuna = pytest.importorskip("optuna", reason="needs the extra search")
TINY = [
    *("env.num_envs=4", "rollout.num_steps=32", "total_env_steps=400", "update.epochs=1", "rollouts_per_epoch=1"),
    *("evaluation.episodes=2", "evaluation.final_episodes=2", "evaluation.num_envs=2", "policy.hidden_sizes=[8]"),
]


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "search.py"
    spec = importlib.util.spec_from_file_location("search_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return module


def test_three_trials_are_run_and_kept(example, tmp_path):
    file = tmp_path / "shared.yaml"
    file.write_text("rollout: {gamma: 0.9}\n")
    study = example.search(tmp_path / "search", 2, [str(file), *TINY])
    study = example.search(tmp_path / "search", 1, [str(file), *TINY])  # goes on with the same study
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert all(1 <= trial.value <= 500 for trial in study.trials)
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 3
    # every evaluation was reported against environment steps
    steps = list(study.trials[0].intermediate_values)
    assert len(steps) == 3 and all(100 < later - earlier <= 128 for earlier, later in pairwise(steps))
    config = (tmp_path / "search" / "trial_0000" / "config.yaml").read_text()
    assert f"gae_lambda: {study.trials[0].params['gae_lambda']}" in config and "gamma: 0.9\n" in config


def test_a_hopeless_trial_is_pruned(example, tmp_path):
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=1000.0))
    study.optimize(lambda trial: example.objective(trial, tmp_path, TINY), n_trials=1)
    (trial,) = study.trials
    assert trial.state.name == "PRUNED" and len(trial.intermediate_values) == 1
    assert not (tmp_path / "trial_0000" / "summary.json").exists()
