"""The arithmetic and bookkeeping of the benchmark scripts, on numbers whose right answers are known."""

import csv
import json
import subprocess
import sys
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

from benchmarks import (
    ablations,
    family,
    gpu,
    gpu_day,
    learning,
    memory,
    recurrent,
    shortcuts,
    speed,
    table1,
    where_time_goes,
)
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.distributions.continuous import GaussianHead
from lightning_ppo.settings.algorithm import NormalizeConfig, OptimizerConfig, RolloutConfig, UpdateConfig
from lightning_ppo.settings.loading import flat, load, to_container
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.statistics import interquartile_mean
from tests.kit.preloaded import Command, run_script


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    # 8 scores: 2 cut at each end, (2 + 3 + 4 + 5) / 4
    assert interquartile_mean([7, 0, 1, 6, 2, 5, 3, 4]) == 3.5
    # outliers do not count
    assert interquartile_mean([-1e9, 1, 2, 3, 4, 1e9, 2, 3]) == 2.5
    # along the last axis; of 3 scores none is cut
    np.testing.assert_allclose(interquartile_mean([[0, 3, 6], [1, 1, 4]]), [3.0, 2.0])


def test_seeds_are_drawn_anew_within_their_task_only():
    # tasks differ, seeds do not: drawing across tasks would give an interval of positive width
    assert learning.aggregate({"a": [0.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0, 1.0, 1.0]}) == (0.5, 0.5, 0.5)


def test_interval_of_the_aggregate_covers_what_draws_can_give():
    # two seeds of one task: a draw is (0, 0), (0, 2), (2, 0) or (2, 2) with equal chance
    assert learning.aggregate({"a": [0.0, 2.0]}) == (1.0, 0.0, 2.0)
    mean, low, high = learning.aggregate({"a": np.random.default_rng(0).normal(3.0, 1.0, 400)})
    # standard error of a mean of 400: 0.05, of the interquartile mean about 1.1 times that
    assert mean - low == pytest.approx(1.96 * 0.055, rel=0.25)
    assert high - mean == pytest.approx(1.96 * 0.055, rel=0.25)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results")

    def add(experiment, env_id, *returns):
        for seed, value in enumerate(returns):
            learning.append_row(experiment, {"env_id": env_id, "seed": seed, "train_return_mean": value})

    return add


def test_scores_are_0_for_random_actions_and_1_for_the_reference(results):
    results("random", "Reacher-v5", -40.0)
    results("sb3", "Reacher-v5", -4.0, -6.0)
    results("own", "Reacher-v5", -5.0, -40.0, -22.5)
    results("own", "Hopper-v5", 3000.0)  # no reference
    table = learning.load_results(["random", "sb3", "own"])
    assert learning.normalized_scores(table, "own") == {"Reacher-v5": [1.0, 0.0, 0.5]}
    assert learning.normalized_scores(table, "sb3") == {"Reacher-v5": [pytest.approx(36 / 35), pytest.approx(34 / 35)]}


def test_report_holds_a_row_per_experiment_and_task_and_one_per_aggregate(results, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    for env_id in ("Ant-v5", "Hopper-v5"):
        results("random", env_id, 0.0)
        results("sb3", env_id, 100.0, 100.0)
        results("own", env_id, 200.0, 300.0)
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,rollout/return_mean\n2048,\n4096,10.0\n6144,20.0\n")
    learning.write_curve(metrics, learning.RESULTS / "curves" / "own" / "Hopper-v5-0.csv")
    assert (learning.RESULTS / "curves" / "own" / "Hopper-v5-0.csv").read_text().split() == [
        *("env_steps,return", "4096,10.0", "6144,20.0")
    ]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    learning.report(page, ["own", "sb3"])
    text = page.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "| Ant-v5 | own | 2 | 250.0 ± 70.7 | 200.0 to 300.0 | 200, 300 |  |" in text
    assert "| Hopper-v5 | sb3 | 2 | 100.0 ± 0.0 | 100.0 to 100.0 | 100, 100 |  |" in text
    assert "| sb3 | Ant, Hopper | 2 | 1.00 | 1.00 to 1.00 |" in text
    assert "| own | Ant, Hopper | 2 | 2.50 | 2.00 to 3.00 |" in text
    results("own", "Reacher-v5", -4.25, -5.75)
    learning.report(page, ["own"])
    assert "| Reacher-v5 | own | 2 | -5.0 ± 1.1 | -5.8 to -4.2 | -4.2, -5.8 |  |" in page.read_text()
    # a task with more seeds counts no more than the others
    results("many", "Ant-v5", 200.0, 300.0, *[900.0] * 8)
    results("many", "Hopper-v5", 200.0, 300.0)
    assert "| many | Ant, Hopper | 2 | 2.50 | 2.00 to 3.00 |" in learning.aggregate_lines(["many"])
    # where one task has one seed there is no interval
    results("one", "Ant-v5", 200.0, 900.0)
    results("one", "Hopper-v5", 400.0)
    assert "| one | Ant, Hopper | 1 | 3.00 |  |" in learning.aggregate_lines(["one"])
    assert (tmp_path / "page.png").exists()


def test_finished_runs_are_known_by_experiment_task_and_seed(results):
    results("own", "Ant-v5", 1.0, 2.0)
    assert learning.is_done("own", "Ant-v5", 1)
    assert not learning.is_done("own", "Ant-v5", 2)
    assert not learning.is_done("own", "Hopper-v5", 1)
    assert not learning.is_done("other", "Ant-v5", 1)


def test_an_experiment_keeps_to_its_settings(results, monkeypatch, capsys):
    shown = yaml.safe_dump(
        {
            **{"seed": 1, "run_dir": None, "resume": None, "compile": False, "env": {"id": "Ant-v5", "num_envs": 64}},
            "optimizer": {"learning_rate": {"kind": "linear", "start": 1.0}},
        }
    )
    assert learning.keep_settings("own", "Ant-v5", shown) == ""
    path = learning.RESULTS / "settings" / "own" / "Ant-v5.yaml"
    assert yaml.safe_load(path.read_text()).keys() == {"compile", "env", "optimizer"}
    others = shown.replace("seed: 1", "seed: 2").replace("compile: false", "added: 3")
    assert learning.keep_settings("own", "Ant-v5", others) == ""
    changed = learning.keep_settings("own", "Ant-v5", shown.replace("num_envs: 64", "num_envs: 32"))
    assert changed.startswith("env.num_envs was 64 and is 32; choose another name than own, or delete its rows")
    assert learning.keep_settings("other", "Ant-v5", shown.replace("num_envs: 64", "num_envs: 32")) == ""
    rate = yaml.safe_load(shown) | {"optimizer": {"learning_rate": 1.0}}
    assert learning.keep_settings("own", "Ant-v5", yaml.safe_dump(rate)).startswith(
        "optimizer.learning_rate was {'kind': 'linear', 'start': 1.0} and is 1.0;"
    )
    # before a run is begun, and before one is taken as done
    results("own", "CartPole-v1", 5.0)
    learning.keep_settings("own", "CartPole-v1", "rollout: {num_steps: 7}")
    error = learning.run_one("own", ["configs/cartpole.yaml"], None, 0, [])
    assert "rollout.num_steps was 7 and is" in error and "done before" not in capsys.readouterr().out


def test_speed_counts_what_follows_the_warm_up():
    # iterations end at 10 s (compiling), 20 s, 21 s, 23 s: one of 100 steps and one of 90, in 3 s
    assert speed.speed([10.0, 20.0, 21.0, 23.0], [100, 200, 300, 390]) == pytest.approx(190 / 3)


def speed_row(system, rate, memory=100.0, compile_seconds=0.0):
    names = {"workload": "w", "system": system, "repeat": 1, "env_steps_per_second": rate, "start_seconds": 3.0}
    names |= {"compile_seconds": compile_seconds, "peak_memory_mb": memory, "versions": json.dumps({"torch": "1"})}
    return {name: str(value) for name, value in names.items()} | {"cpu": "c", "cores": "2", "date": "d", "commit": "a"}


def test_table_of_a_race_has_medians_and_their_ratios():
    rates = {"lightning_ppo": (3000, 2000, 9000), "lightning_ppo_overlapped": (4500,), "sb3": (1500, 900, 2000)}
    rates["environment"] = (30000, 30000, 30000)
    lines = speed.table([speed_row(system, rate) for system, three in rates.items() for rate in three])
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
    assert "| lightning_ppo, eager | 3,000 (2,000 to 9,000) |  |  | 10% | 3.0 |  | 100 |" in lines
    # on more cores than the bare environment: no share
    overlapped = speed.SYSTEMS["lightning_ppo_overlapped"].label
    assert f"| {overlapped} | 4,500 (4,500 to 4,500) |  |  |  | 3.0 |  | 100 |" in lines
    assert "| Stable-Baselines3 | 1,500 (900 to 2,000) | 2.00x | 3.00x | 5% | 3.0 |  | 100 |" in lines
    assert lines[-1].startswith("At least 1 runs each, interleaved, one core each unless title or system say otherwise")
    assert lines[-1].endswith("otherwise, c (2 cores), d, commit a; torch 1.")


@pytest.fixture
def preloaded(monkeypatch):
    """Racers run in processes that have torch imported already."""

    def run(command, env=None, **kwargs):
        if sys.executable not in command:
            return subprocess.run(command, env=env, **kwargs)
        *_, script, task = command
        code, output, errors = Command(run_script, script, task, **env).wait(120)
        return subprocess.CompletedProcess(command, code, output, errors)

    monkeypatch.setattr(speed, "subprocess", SimpleNamespace(run=run))


@pytest.mark.docs
def test_racers_do_what_they_are_asked(tmp_path, preloaded):
    results = tmp_path / "speed.csv"
    workload = {"Pendulum-v1, tiny": speed.TINY["Pendulum-v1, tiny"]}
    systems = ["lightning_ppo", "lightning_ppo_grouped", "lightning_ppo_overlapped", "single_file", "environment"]
    speed.race_all(results, workload, systems, 1)
    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows] == systems
    assert all(float(row["env_steps_per_second"]) > 0 and float(row["peak_memory_mb"]) > 50 for row in rows)
    assert any(line.startswith("| single-file loop, CleanRL-style |") for line in speed.table(rows))


@pytest.mark.docs
def test_the_smoke_test_of_a_race_prints_its_page_and_keeps_nothing(monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    before = (speed.RESULTS / "speed.csv").read_bytes(), (speed.ROOT / "docs" / "speed.md").read_bytes()
    monkeypatch.setattr(speed, "TINY", {"CartPole-v1, tiny": speed.TINY["CartPole-v1, tiny"]})
    monkeypatch.setattr("sys.argv", ["speed.py", "--smoke", "--systems", "lightning_ppo_compiled", "single_file"])
    speed.main()
    page = capsys.readouterr().out
    assert "### CartPole-v1, tiny" in page and "| lightning_ppo, compile=true |" in page
    assert before == ((speed.RESULTS / "speed.csv").read_bytes(), (speed.ROOT / "docs" / "speed.md").read_bytes())


def test_a_race_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    results, raced = tmp_path / "speed.csv", []

    def race(workload, task, name, repeat):
        raced.append((name, repeat))
        if len(raced) == 4:
            raise SystemExit("stopped")
        return {"env_steps_per_second": 1.0, "system": name} | {
            "workload": workload,
            "repeat": repeat,
            "iterations": task.iterations,
        }

    monkeypatch.setattr(speed, "race", race)
    with pytest.raises(SystemExit):
        speed.race_all(results, speed.TINY, ["sb3", "sbx"], 2)
    speed.race_all(results, {"CartPole-v1, tiny": speed.TINY["CartPole-v1, tiny"]}, ["sb3", "sbx"], 2)
    # interleaved, and the run that was stopped is the only one that is repeated
    assert raced == [("sb3", 1), ("sbx", 1), ("sb3", 2), ("sbx", 2), ("sbx", 2)]
    assert len(learning.read_rows(results)) == 4


@pytest.mark.docs
def test_games_are_raced_by_those_who_see_pictures(tmp_path, preloaded):
    pytest.importorskip("ale_py", reason="needs the extra atari")
    results = tmp_path / "speed.csv"
    speed.race_all(results, {"Pong, tiny": speed.TINY["Pong, tiny"]}, ["lightning_ppo", "single_file"], 1)
    with open(results, newline="") as file:
        assert [row["system"] for row in csv.DictReader(file)] == ["lightning_ppo"]


def test_report_of_a_race_goes_between_the_markers_of_a_page(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- race: begin -->\nold\n<!-- race: end -->\nafter\n")
    speed.report(page, [speed_row("lightning_ppo", 2000), speed_row("sb3", 1000)])
    text = page.read_text()
    assert text.startswith("before\n<!-- race: begin -->\n### w\n") and text.endswith("<!-- race: end -->\nafter\n")
    assert "2.00x" in text and "old" not in text
    assert (tmp_path / "page.png").exists()


def test_a_racer_that_fails_says_why(tmp_path, preloaded):
    broken = {"nothing": speed.Race("", "NoSuchEnvironment-v0", 1, 1, 1, 1, 3, False, 1)}
    with pytest.raises(SystemExit, match=r"environment failed in nothing\n[\s\S]*NoSuchEnvironment"):
        speed.race_all(tmp_path / "speed.csv", broken, ["environment"], 1)


# ---------------------------------------------------------------- table 1


def test_scores_of_table_1_have_random_actions_at_0_and_the_best_run_of_the_papers_columns_at_1(results):
    results("random", "Reacher-v5", -40.0)
    results("t-clip-0.2", "Reacher-v5", -10.0, -20.0)
    results("t-none", "Reacher-v5", -50.0)
    results("t-none", "Ant-v5", 3.0)  # no task of the table
    results("t-trpo", "Reacher-v5", -4.0)
    table = learning.load_results(["random", "t-clip-0.2", "t-none", "t-trpo"])
    found = table1.scores(table, ["t-clip-0.2", "t-none", "t-trpo", "t-beta-1"], ["t-clip-0.2", "t-none"])
    assert found["t-clip-0.2"] == {"Reacher-v5": [1.0, pytest.approx(2 / 3)]}
    assert found["t-none"] == {"Reacher-v5": [pytest.approx(-1 / 3)]}
    assert found["t-trpo"] == {"Reacher-v5": [pytest.approx(1.2)]}
    assert found["t-beta-1"] == {}


def test_differences_of_table_1_have_the_spread_of_both_columns():
    one, other = {"A": [1.0, 3.0], "B": [2.0, 2.0]}, {"A": [0.0, 2.0], "B": [1.0, 1.0]}
    mean, low, high = table1.difference(one, other)
    # drawn means of A differ by between -1 and 3, each end in 1 draw of 16; A is half of each column
    assert mean == 1.0 and (low, high) == (0.0, 2.0)
    assert table1.difference({"A": [1.0]}, {"A": [0.5, 0.5]}) == (0.5, 0.5, 0.5)


@pytest.mark.docs
def test_a_run_goes_on_with_the_settings_it_began_with_only(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")
    small = ["total_env_steps=128", "env.num_envs=2", "rollout.num_steps=32", "update.minibatch_size=64"]
    small += ["evaluation.final_episodes=0"]
    checkpoint = tmp_path / "runs" / "own" / "CartPole-v1-1" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "runs" / "own" / "CartPole-v1-1.json").write_text(
        '{"command": "python train.py x", "commit": "c0ffee"}'
    )
    with pytest.raises(SystemExit, match="1 of the runs failed"):
        learning.run_all([("own", ["configs/cartpole.yaml"], None, 1, small)], workers=1)
    assert "was begun by `python train.py x`; delete it, or go on with that" in capsys.readouterr().out
    assert checkpoint.exists() and not learning.is_done("own", "CartPole-v1", 1)
    learning.clear(checkpoint.parents[1])
    learning.run_all([("own", ["configs/cartpole.yaml"], None, 1, small)], workers=1)
    assert learning.is_done("own", "CartPole-v1", 1) and not any((tmp_path / "runs" / "own").iterdir())


@pytest.mark.docs
def test_ids_with_a_module_are_known_again(results, tmp_path, monkeypatch, capsys):
    (tmp_path / "grid.py").write_text("from gymnasium.envs.classic_control import CartPoleEnv\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")
    small = ["total_env_steps=128", "env.num_envs=2", "rollout.num_steps=32", "update.minibatch_size=64"]
    small += ["evaluation.final_episodes=0"]
    for _ in range(2):
        learning.run_one("own", [], "grid:CartPoleEnv", 1, small)
    assert capsys.readouterr().out.endswith("own grid:CartPoleEnv seed 1: done before\n")
    curves = learning.RESULTS / "curves" / "own"
    assert [path.name for path in curves.iterdir()] == ["grid_CartPoleEnv-1.csv"]


def test_a_diverged_run_counts_with_what_it_had_reached(results, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")
    run_dir = tmp_path / "runs" / "t-none" / "Reacher-v5-1"

    def diverge(*arguments):
        run_dir.mkdir(parents=True)
        (run_dir / "metrics.csv").write_text("step,rollout/return_mean\n2048,-30.0\n4096,-75.0\n6144,\n")
        run_dir.with_name("Reacher-v5-1.json").write_text('{"command": "python train.py", "commit": "abc1234"}')
        return "error: loss/policy is inf in minibatch 3; nothing was learnt from there on"

    monkeypatch.setattr(learning, "run_one", diverge)
    table1.run_one("t-none", [table1.CONFIG], "Reacher-v5", 1, ["objective=surrogate"])
    (row,) = learning.load_results(["t-none"])["Reacher-v5"]["t-none"]
    assert (row["train_return_mean"], row["env_steps"], row["train_return_std"]) == ("-75.0", "4096", "")
    assert row["command"].endswith("env.id=Reacher-v5 objective=surrogate seed=1")
    assert row["commit"] == "abc1234"  # that of the beginning, not of the end
    assert not run_dir.exists()
    monkeypatch.setattr(learning, "run_one", lambda *arguments: "error: killed")
    assert table1.run_one("t-none", [table1.CONFIG], "Reacher-v5", 2, []) == "error: killed"
    monkeypatch.setattr(learning, "run_one", lambda *arguments: "nan; nothing was learnt from there on")
    assert "nan" in table1.run_one("t-none", [table1.CONFIG], "Reacher-v5", 3, [])  # it had reached nothing
    assert len(learning.load_results(["t-none"])["Reacher-v5"]["t-none"]) == 1


def test_the_page_of_table_1_has_ours_beside_the_papers(results, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "draw", lambda *arguments: None)
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- table: begin -->\nold\n<!-- table: end -->\nbelow\n")
    for env_id in table1.TASKS:
        results("random", env_id, 0.0)
        results("table1-clip-0.2", env_id, 10.0, 8.0, 6.0)
        results("table1-none", env_id, -2.0)
        results("table1-trpo", env_id, 20.0, 8.0, 2.0)
    table1.report("table1", page)
    text = page.read_text()
    # rows without a deviation are those of runs that diverged
    assert "| clipping, ε = 0.2 | 0.80 | 0.73 to 0.87 |  | 0.82 | 21 of 21, 21 diverged |" in text
    assert "| no clipping or penalty | -0.20 |  |  | -0.39 | 7 of 21, 7 diverged |" in text
    assert "| TRPO, δ = 0.01 | 1.00 |" in text and "| +0.20 (" in text
    assert "| clipping, ε = 0.2 |" + " 8.0 ± 1.6 |" * 7 in text
    assert "old" not in text and text.startswith("above") and text.endswith("below\n")


def test_unbounded_actions_reach_the_task_as_they_were_sampled():
    seen = []

    class Task(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Box(-3, 3, (2,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            seen.append(action)
            return np.zeros(1, np.float32), 0.0, False, False, {}

    sampled = torch.tensor([[-7.0, 0.5]])
    for env in (Task(), table1.UnboundedActions(Task())):
        env.reset()
        env.step(GaussianHead(env.action_space).to_env(sampled)[0].numpy())
    np.testing.assert_array_equal(seen, [[-3.0, 1.5], [-7.0, 0.5]])


def test_every_column_of_table_1_is_a_change_of_the_papers_settings():
    papers = load([learning.ROOT / table1.CONFIG])
    assert len(table1.COLUMNS) == 13 and sum(c.paper is not None for c in table1.COLUMNS.values()) == 11
    for column in table1.COLUMNS.values():
        config = load([learning.ROOT / table1.CONFIG], [*column.settings, *table1.ALWAYS])
        assert (config.optimizer, config.policy) == (papers.optimizer, papers.policy)
        assert config.env == papers.env and config.normalize == papers.normalize
        assert (config.objective, config.update) != (papers.objective, papers.update) or column.paper == 0.82
        named = {name.partition("=")[0] for name in column.settings}
        allowed = {name.removeprefix("update.") for name in named if name.startswith("update.")}
        assert replace(config.update, **{name: getattr(papers.update, name) for name in allowed}) == papers.update
        assert allowed <= {"clip_range", "kl_target", "kl_coefficient", "epochs"}
        if config.objective == "policy_gradient":  # each step takes fresh transitions
            assert allowed == {"epochs"} and config.update.epochs == 1
            assert config.rollout == replace(papers.rollout, num_steps=papers.update.minibatch_size)
        else:
            assert "epochs" not in allowed and config.rollout == papers.rollout


@pytest.mark.docs
def test_every_ablation_changes_one_of_the_defaults():
    for task in ablations.TASKS:
        config = learning.ROOT / "configs" / f"{task}.yaml"
        defaults = flat(to_container(load([config])))
        for name, change in ablations.CHANGES.items():
            changed = flat(to_container(load([config], change.settings)))
            different = {key for key in {**defaults, **changed} if defaults.get(key) != changed.get(key)}
            assert len({".".join(key.split(".")[:2]) for key in different}) == 1, name


def test_the_ablation_table_is_on_the_scale_of_the_defaults(results, tmp_path):
    for env_id, scale in (("Hopper-v5", 1.0), ("Swimmer-v5", 10.0)):
        results("random", env_id, 0.0)
        results("universal", env_id, 90.0 * scale, 110.0 * scale)
        results("ablation-in-step", env_id, 50.0 * scale, 30.0 * scale)
    results("ablation-log-std-0", "Hopper-v5", 100.0)
    page = tmp_path / "page.md"
    page.write_text("<!-- table: begin -->\n<!-- table: end -->\n")
    ablations.report(page)
    text = page.read_text()
    assert "| none | 100.0 ± 10.0 | 1,000.0 ± 100.0 | 2 | 1.00 | 0.90 to 1.10 |" in text
    assert "| copies in step | 40.0 ± 10.0 | 400.0 ± 100.0 | 2 | 0.40 | 0.30 to 0.50 |" in text
    assert "| log standard deviation 0 at the start | 100.0 |  |  |  |  |" in text  # one task is not all of them


def test_deep_q_learning_stands_beside_the_family(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results")
    for experiment, played in (("family-trpo", [450.0, 500.0]), ("sb3-dqn-200000", [9.0])):
        for seed, value in enumerate(played, 1):
            row = {"env_id": "CartPole-v1", "seed": seed, "train_return_mean": value - 1.0, "eval_return_mean": value}
            learning.append_row(experiment, row)
    page = tmp_path / "page.md"
    page.write_text("<!-- table: begin -->\n<!-- table: end -->\n")
    family.report(page)
    lines = page.read_text().splitlines()
    assert "| `trpo` | 474 (449 to 499) | 475 (450 to 500) |  |  |  |  |  |  |" in lines
    assert "| DQN (Stable-Baselines3) | 8 (8 to 8) | 9 (9 to 9) |  |  |  |  |  |  |" in lines
    assert len(lines) == 2 + 2 + len(family.OBJECTIVES) + 1  # markers, header, ours, theirs


def test_the_family_differs_in_the_objective_alone(monkeypatch):
    runs = []
    monkeypatch.setattr(learning, "run_all", lambda tasks, workers: runs.extend(tasks))
    monkeypatch.setattr(sys, "argv", ["family.py", "run", "--seeds", "1"])
    family.main()
    assert len(runs) == len(family.OBJECTIVES) * len(family.TASKS)
    configs = [load([learning.ROOT / paths[0]], [*settings, f"env.id={task}"]) for _, paths, task, _, settings in runs]
    alike = {"objective": "clip", "compile": True, "update": configs[0].update}
    for config, (experiment, _, task, _, _) in zip(configs, runs, strict=True):
        assert experiment == f"family-{config.objective}"
        expected = replace(configs[0], env=replace(configs[0].env, id=task))
        assert replace(config, **alike) == expected


def test_a_time_limit_can_be_taken_for_a_termination():
    env = ablations.TimeLimitsTerminate(gym.make("Pendulum-v1", max_episode_steps=2))
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(2)]
    assert ends == [(False, False), (True, False)]


def test_plain_networks_differ_from_the_universal_ones_in_their_weights_only():
    space = gym.spaces.Box(-1.0, 1.0, (5,))
    plain = ablations.PlainNetworks(space, 3)
    ours = ActorCritic(space, gym.spaces.Box(-1.0, 1.0, (3,)))
    shapes = [
        sorted(tuple(p.shape) for name, p in module.named_parameters() if "log_std" not in name)
        for module in (plain, ours)
    ]
    assert shapes[0] == shapes[1]
    outputs, values = plain(torch.zeros(7, 5))
    assert outputs.shape == (7, 3) and values.shape == (7,)
    first = plain.policy[0].weight
    assert first.abs().max() <= 5**-0.5 and not torch.allclose(first.T @ first, 2.0 * torch.eye(5), atol=0.1)


@pytest.mark.parametrize("name", ["paper/mujoco.yaml", "paper/atari.yaml", "parity/mujoco.yaml"])
def test_a_reproduction_leaves_nothing_to_the_defaults(name):
    """Whatever changes what is learnt is written down, so that a new default cannot change it."""
    given = yaml.safe_load((learning.ROOT / "configs" / name).read_text())
    without_effect = {
        "update": {"sequence_length", "micro_batch_size"},
        "optimizer": {"init_args"},  # Adam has settings of its own
        "policy": {"core_size", "core_layers", "core_heads", "core_memory", "critic_observation_keys"},
        "normalize": set(),
    }
    if name != "paper/mujoco.yaml":  # whose other objectives are compared
        without_effect["update"] |= {"kl_coefficient", "kl_target", "trust_region"}
    if name == "paper/atari.yaml":  # no layers after the CNN, discrete actions, nothing normalised
        without_effect["policy"] |= {"activation", "log_std_init", "log_std_bounds"}
        without_effect["normalize"] |= {"observation_clip", "epsilon"}
    if not given["normalize"]["rewards"]:
        without_effect["normalize"] |= {"reward_clip"}
    sections = {"rollout": RolloutConfig, "update": UpdateConfig, "optimizer": OptimizerConfig}
    sections |= {"policy": PolicyConfig, "normalize": NormalizeConfig}
    for section, settings in sections.items():
        assert {f.name for f in fields(settings)} - set(given[section]) == without_effect.get(section, set()), section


@pytest.mark.docs
@pytest.mark.parametrize("compiled", [False, True])
def test_parts_of_an_iteration_add_up_to_its_time(compiled):
    task = speed.TINY["Pendulum-v1, tiny"]
    seconds = where_time_goes.profile(task, compiled)
    parts = where_time_goes.parts(task, seconds, compiled)
    assert sum(spent for _, spent, _, _ in parts) == pytest.approx(seconds["wall"], rel=1e-6)
    assert all(spent > 0 for _, spent, _, _ in parts)
    # 1 iteration after the warm-up: 16 vector steps of 2 environments, 2 epochs of 2 minibatches of 16
    assert {unit: count for _, _, unit, count in parts} == {"vector step": 16, "minibatch": 4, "iteration": 1}


def test_the_cost_of_memory_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recurrent.py", "--smoke"])
    recurrent.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " env steps/s" in line]
    assert [line[1] for line in lines] == ["MLP", "LSTM", "GRU", "transformer"]
    assert lines[0][5] == "1.00" and all(float(line[2]) > 0 for line in lines)


@pytest.mark.docs
def test_everything_that_is_timed_on_a_gpu_runs_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--smoke"])
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    gpu.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[1] for row in rows[1:]] == [
        *("lightning_ppo, eager", "lightning_ppo, compile=true", "eager loop, CleanRL-style"),
        *("lightning_ppo, eager", "lightning_ppo, compile=true"),
    ]
    assert all("x of 1,000" in row for row in rows[1:4])


@pytest.mark.docs
@pytest.mark.parametrize("part", [name for name in gpu_day.PARTS if name != "tests"])
def test_the_day_on_a_gpu_is_rehearsed_on_the_cpu(part, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    gpu_day.PARTS[part][0](gpu_day.Day("cpu", True, tmp_path, part))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) >= 2 and all(row["part"] == part and row["value"] is not False for row in rows)


@pytest.mark.docs
def test_a_part_that_fails_or_takes_too_long_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    day = gpu_day.Day("cpu", True, tmp_path / "out", "graphs")
    assert not gpu_day._run("graphs", day, 0.01, "")
    ran = gpu_day.Day("nonsense", True, tmp_path / "out", "exact")
    assert not gpu_day._run("exact", ran, 60, str(gpu_day.ROOT))
    rows = [json.loads(line) for line in day.rows.read_text().splitlines()]
    assert [row["what"] for row in rows] == ["failed (stopped after 0 s)", "failed (2)"]
    assert "invalid choice: 'nonsense'" in rows[1]["value"]


def test_what_a_shortcut_brings_is_compared_round_by_round(tmp_path):
    about = {"workload": "gru", "cpu": "a cpu", "cores": 2, "torch": "2", "date": "today", "commit": "abc"}
    speeds = {"nothing": (100.0, 300.0, 130.0), "scan": (50.0, 200.0, 100.0), "adam": (100.0,)}
    rows = [
        about | {"without": without, "run": run, "env_steps_per_second": rate}
        for without, rates in speeds.items()
        for run, rate in enumerate(rates, 1)
    ]
    assert shortcuts.gains(rows, "gru", "scan") == pytest.approx([1.0, 0.5, 0.3])
    (tmp_path / "page.md").write_text(f"before\n{shortcuts.BEGIN}\nold\n{shortcuts.END}\nafter")
    shortcuts.report(tmp_path / "page.md", rows)
    page = (tmp_path / "page.md").read_text()
    assert "| advantages by a scan | +50.0% (+30.0% to +100.0%) |" in page
    assert "| Adam in one call | +0.0% (+0.0% to +0.0%) |" in page
    assert page.startswith("before\n") and page.endswith("\nafter") and "old" not in page and "3 rounds, a cpu" in page


@pytest.mark.parametrize("without", [name for name in shortcuts.VARIANTS if name != "nothing"])
def test_what_a_variant_leaves_out_is_there(without, monkeypatch):
    """A name that has moved would be measured as a shortcut that brings nothing."""
    patched = []
    with monkeypatch.context() as patches:
        patches.setattr(shortcuts, "patch", lambda *given: patched.append(mock.patch(*given)) or patched[-1])
        try:
            shortcuts.VARIANTS[without].turn_off()
            assert bool(patched) == (without != "all")
        finally:
            mock.patch.stopall()


def test_memory_is_told_per_parameter_and_per_row(monkeypatch):
    def measured(way: str, width: int, layers: int, rows: int) -> dict[str, float]:
        # 16 bytes for each of 10,000 parameters per unit of width, 500 for each row, and 3 MB
        megabytes = 3.0 + 0.16 * width + 0.0005 * rows
        return {"parameters": 10_000 * width, "megabytes": megabytes, "seconds": 0.25}

    monkeypatch.setattr(memory, "measure", measured)
    *_, row = memory.table([2, 4], 1, 16, ["plain torch"]).splitlines()
    assert row == "| plain torch | 40,000 | 4 | 250 | 16.0 | 500 |"


def test_a_transformer_is_measured_in_plain_torch_and_in_a_fit():
    for found in (memory.plain(8, 1, 8), memory.fitted(8, 1, 8, micro_batch_size=8)):
        assert 0.0 < found["seconds"] < 60.0
