"""What callbacks change and environments tell, in launched ranks: the same as in one process with all copies."""

import pytest
import torch

from tests.kit import changed_worker
from tests.kit.preloaded import run_ranks

pytestmark = pytest.mark.ranks


def launched(out, ranks, *arguments):
    run_ranks(ranks, changed_worker.main, str(out), *arguments)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(ranks)]


def test_two_ranks_change_and_tell_what_one_does(tmp_path):
    (whole,) = launched(tmp_path / "one", 1)
    ranks = launched(tmp_path / "two", 2)
    for iteration in range(3):
        for found in (whole, *ranks):
            assert set(found["rewards"][iteration].flatten().tolist()) == {float(iteration)}
        told = whole["metrics"][iteration]
        names = {f"rollout/info/{name}_{kind}" for name in ("level", "luck") for kind in ("per_step", "per_episode")}
        assert names | {"rollout/success_rate"} == set(told)
        assert told["rollout/info/level_per_step"] == iteration
        for found in ranks:
            assert found["metrics"][iteration] == pytest.approx(told)
    for found in ranks:
        assert found["eval"] == ranks[0]["eval"]
        assert found["eval"]["eval/return_mean"] == 3 * 3.0  # the evaluation after the third iteration
    assert ranks[0]["rewards"][0].shape == (8, 2)


def test_a_change_on_one_rank_alone_stops_all(tmp_path):
    with pytest.raises(AssertionError, match="the ranks have not asked for the same; call them on every rank"):
        launched(tmp_path / "two", 2, False)
