"""Ranks as threads of one process: what they exchange is exchanged at once, and who does not come is missed."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_ppo.support import distributed

Result = TypeVar("Result")

PATIENCE = 20.0
"""Seconds that ranks wait for each other."""


class Meeting:
    """Where threads exchange values; it stands for the process group."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.barrier = ranks, threading.Barrier(ranks, timeout=PATIENCE)
        self.own = threading.local()
        self.values: list[Any] = [None] * ranks

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        self.values[self.own.rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def takes(self, tensor: Tensor) -> bool:
        return True

    def reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        combine = {dist.ReduceOp.SUM: torch.add, dist.ReduceOp.MAX: torch.maximum}[operation]
        return reduce(combine, self.exchange(tensor.detach().clone()))

    def gather(self, gathered: list[Any], value: Any) -> None:
        gathered[:] = self.exchange(value)


def in_ranks(ranks: int, function: Callable[[int], Result]) -> list[Result]:
    """Return what a function returns for each rank, called with its number in a thread of its own."""
    meeting = Meeting(ranks)

    def work(rank: int) -> Result:
        meeting.own.rank = rank
        try:
            return function(rank)
        except BaseException:
            meeting.barrier.abort()  # nobody waits for it
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_world_size", lambda: ranks)
        patch.setattr(dist, "get_rank", lambda: meeting.own.rank)
        patch.setattr(dist, "all_gather_object", meeting.gather)
        patch.setattr(distributed, "_shared", meeting)
        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(work, range(ranks)))
