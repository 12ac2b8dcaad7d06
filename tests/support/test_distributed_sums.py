"""What ranks exchange: sums, means, maxima, objects, and errors that all of them raise."""

import pytest
import torch

from lightning_ppo.support.distributed import (
    gather_objects,
    max_over_ranks,
    mean_over_ranks,
    raise_together,
    sum_over_ranks,
)
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.threads import in_ranks

CPU = torch.device("cpu")


def test_sums_means_and_maxima_are_those_of_all_ranks():
    def reduced(rank):
        own = torch.tensor([1.0, -4.0]) * (rank + 1)
        found = [f(own).tolist() for f in (sum_over_ranks, mean_over_ranks, max_over_ranks)]
        return [*found, own.tolist()]

    found = in_ranks(3, reduced)
    for rank, (total, mean, largest, own) in enumerate(found):
        assert (total, mean, largest) == ([6.0, -24.0], [2.0, -8.0], [3.0, -4.0])
        assert own == [rank + 1.0, -4.0 * (rank + 1)]  # which is left as it was


def test_objects_are_gathered_in_the_order_of_the_ranks():
    def gathered(rank):
        return gather_objects({"rank": rank, "weights": torch.full((2,), float(rank))})

    for found in in_ranks(2, gathered):
        assert [entry["rank"] for entry in found] == [0, 1]
        assert [entry["weights"].tolist() for entry in found] == [[0.0, 0.0], [1.0, 1.0]]


def test_an_error_of_one_rank_is_raised_on_all():
    def fail(rank):
        with pytest.raises((ConfigError, EnvironmentFault)) as error:
            raise_together(ConfigError("seed: wrong") if rank == 1 else None, CPU)
        return type(error.value), str(error.value)

    (other, told), (own, said) = in_ranks(2, fail)
    assert (own, said) == (ConfigError, "rank 1: seed: wrong")
    assert other is EnvironmentFault and "rank 1 failed" in told
    assert in_ranks(2, lambda rank: raise_together(None, CPU)) == [None, None]


def test_alone_nothing_is_exchanged():
    own = torch.tensor([1.0, 2.0])
    assert all(f(own).tolist() == [1.0, 2.0] for f in (sum_over_ranks, mean_over_ranks, max_over_ranks))
    assert gather_objects("x") == ["x"]
    with pytest.raises(ConfigError, match=r"^seed: wrong$"):
        raise_together(ConfigError("seed: wrong"), CPU)
