"""Two ranks are one rank: on the same data they learn the same, to float tolerance, and never drift apart."""

import pytest
import torch

from tests.kit.ranks import distance, launch

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(
    ("env", "control"),
    [
        pytest.param("CartPole-v1", "", marks=pytest.mark.representative),
        *(("Pendulum-v1", ""), ("CartPole-v1", "lstm"), ("CartPole-v1", "transformer"), ("Pendulum-v1", "adaptive_kl")),
    ],
)
def test_two_ranks_equal_one(env, control, tmp_path):
    (alone,) = launch(tmp_path / "one", 1, env, control)
    pair = launch(tmp_path / "two", 2, env, control)
    for mine, theirs in zip(pair[0]["states"], pair[1]["states"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)  # bit for bit
    assert len(alone["states"]) == len(pair[0]["states"]) == 20
    assert torch.equal(torch.cat([rank["actions"][0] for rank in pair], 1), alone["actions"][0])
    assert distance(pair[0]["states"][0], alone["states"][0]) < 2e-6
    assert distance(pair[0]["states"][4], alone["states"][4]) < 2e-4
    # rounding differs, so that actions will, sooner or later
    for together, single in zip(pair[0]["metrics"][:5], alone["metrics"][:5], strict=True):
        assert together["step"] == single["step"]  # env steps count all ranks
        for name in ("update/kl", "loss/policy", "loss/value", "update/learning_rate", "update/grad_norm"):
            assert together[name] == pytest.approx(single[name], rel=2e-2, abs=2e-5), name
    assert pair[0]["metrics"] == pair[1]["metrics"]
    assert pair[0]["final"]["eval/episodes"] == 3  # shared out over the ranks
    if control == "adaptive_kl":
        together, single = (
            [float(s["objective.coefficient"]) for s in ranks["states"][:5]] for ranks in (pair[0], alone)
        )
        assert together == single and single[-1] != 1.0


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_two_ranks_equal_one_in_float64_with_rows_that_are_no_transitions(env, tmp_path):
    """Rounding hides nothing here, also where ranks have different numbers of valid rows."""
    (alone,) = launch(tmp_path / "one", 1, env, "filler rows", "64-true")
    pair = launch(tmp_path / "two", 2, env, "filler rows", "64-true")
    assert {x.dtype for x in alone["states"][0].values()} == {torch.float64}
    for iteration in range(5):
        bound = 1e-12 if iteration == 0 else 1e-9
        assert distance(pair[0]["states"][iteration], alone["states"][iteration]) <= bound  # the normalisers, too
        for rank in pair:
            together, single = rank["metrics"][iteration], alone["metrics"][iteration]
            assert together["step"] == single["step"]
            assert together.keys() == single.keys()
            for name in single:
                assert together[name] == pytest.approx(single[name], rel=1e-7, abs=1e-9), name
    if env == "CartPole-v1":
        assert alone["metrics"][-1]["step"] < 5 * 8 * 16
        sums = launch(tmp_path / "sum", 2, env, "gradient sum", "64-true")
        assert distance(sums[0]["states"][0], alone["states"][0]) > 1e-10  # Adam's epsilon shows, clipping hides
        assert sums[0]["metrics"][0]["update/grad_norm"] > 1.5 * alone["metrics"][0]["update/grad_norm"]
        own = launch(tmp_path / "own", 2, env, "own rows", "64-true")
        assert distance(own[0]["states"][4], alone["states"][4]) > 1e-6


@pytest.mark.parametrize("control", ["pieces", "pieces, plain"])
def test_two_ranks_that_learn_in_pieces_equal_one_that_does_not(control, tmp_path):
    (alone,) = launch(tmp_path / "one", 1, "CartPole-v1", control, "64-true")
    pair = launch(tmp_path / "two", 2, "CartPole-v1", control, "64-true")
    for iteration in range(5):
        mine, theirs = (rank["states"][iteration] for rank in pair)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert distance(mine, alone["states"][iteration]) <= (1e-12 if iteration == 0 else 1e-9)
    for name, value in alone["metrics"][0].items():
        assert pair[0]["metrics"][0][name] == pytest.approx(value, rel=1e-7, abs=1e-9), name


def test_two_ranks_take_the_trust_region_step_of_one(tmp_path):
    (alone,) = launch(tmp_path / "one", 1, "CartPole-v1", "trpo")
    pair = launch(tmp_path / "two", 2, "CartPole-v1", "trpo")
    for mine, theirs in zip(pair[0]["states"], pair[1]["states"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)  # bit for bit
    assert distance(pair[0]["states"][0], alone["states"][0]) < 2e-5
    assert pair[0]["metrics"] == pair[1]["metrics"]
    taken = [[m["update/step_fraction"] for m in ranks["metrics"]] for ranks in (*pair, alone)]
    assert taken[0] == taken[1] == taken[2] and sum(taken[0]) > 0.0
    for together, single in zip(pair[0]["metrics"], alone["metrics"], strict=True):
        for name in ("update/kl", "update/improvement", "loss/value", "update/grad_norm"):
            assert together[name] == pytest.approx(single[name], rel=2e-2, abs=2e-5), name


def test_normalising_advantages_on_each_rank_alone_would_be_noticed(tmp_path):
    (alone,) = launch(tmp_path / "one", 1, "Pendulum-v1")
    pair = launch(tmp_path / "two", 2, "Pendulum-v1", "own advantages")
    assert distance(pair[0]["states"][0], alone["states"][0]) > 1e-4


def test_statistics_of_each_rank_alone_would_be_noticed(tmp_path):
    (alone,) = launch(tmp_path / "one", 1, "Pendulum-v1")
    pair = launch(tmp_path / "two", 2, "Pendulum-v1", "own statistics")
    assert distance(pair[0]["states"][1], alone["states"][1]) > 1e-4
    assert any(not torch.equal(pair[0]["states"][1][name], pair[1]["states"][1][name]) for name in pair[0]["states"][1])


def test_compiled_ranks_learn_like_eager_ones(tmp_path):
    eager = launch(tmp_path / "eager", 2, "Pendulum-v1")
    compiled = launch(tmp_path / "compiled", 2, "Pendulum-v1", "compiled")
    for mine, theirs in zip(compiled[0]["states"], compiled[1]["states"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert distance(eager[0]["states"][0], compiled[0]["states"][0]) < 2e-5


@pytest.mark.parametrize(("control", "lags"), [("overlap", [0.0, 1.0, 1.0, 1.0, 1.0]), ("groups", [0.0] * 5)])
def test_ranks_that_collect_in_other_processes_stay_together(control, lags, tmp_path):
    pair = launch(tmp_path / "two", 2, "CartPole-v1", control)
    for mine, theirs in zip(pair[0]["states"], pair[1]["states"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert pair[0]["metrics"] == pair[1]["metrics"]
    assert [metrics["rollout/policy_lag"] for metrics in pair[0]["metrics"]] == lags
    assert not torch.equal(pair[0]["actions"][1], pair[1]["actions"][1])


def test_ranks_collect_different_data(tmp_path):
    pair = launch(tmp_path / "apart", 2, "Pendulum-v1", "apart")
    assert not torch.equal(pair[0]["actions"][0], pair[1]["actions"][0])
    assert all(torch.equal(pair[0]["states"][-1][name], pair[1]["states"][-1][name]) for name in pair[0]["states"][-1])
