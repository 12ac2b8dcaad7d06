"""The arithmetic and bookkeeping of the benchmark scripts, on numbers whose right answers are known."""

import numpy as np
import pytest

from benchmarks import learning


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    # 8 scores: 2 cut at each end, (2 + 3 + 4 + 5) / 4
    assert learning.interquartile_mean([7, 0, 1, 6, 2, 5, 3, 4]) == 3.5
    # outliers do not count
    assert learning.interquartile_mean([-1e9, 1, 2, 3, 4, 1e9, 2, 3]) == 2.5
    # along the last axis; of 3 scores none is cut
    np.testing.assert_allclose(learning.interquartile_mean([[0, 3, 6], [1, 1, 4]]), [3.0, 2.0])


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
    assert "| Ant-v5 | own | 2 | 250.0 ± 50.0 | 200.0 to 300.0 | 200, 300 |  |" in text
    assert "| Hopper-v5 | sb3 | 2 | 100.0 ± 0.0 | 100.0 to 100.0 | 100, 100 |  |" in text
    assert "| sb3 | 2 | 4 | 1.00 | 1.00 to 1.00 |" in text
    assert "| own | 2 | 4 | 2.50 | 2.00 to 3.00 |" in text
    assert (tmp_path / "page.png").exists()


def test_finished_runs_are_known_by_experiment_task_and_seed(results):
    results("own", "Ant-v5", 1.0, 2.0)
    assert learning.is_done("own", "Ant-v5", 1)
    assert not learning.is_done("own", "Ant-v5", 2)
    assert not learning.is_done("own", "Hopper-v5", 1)
    assert not learning.is_done("other", "Ant-v5", 1)
