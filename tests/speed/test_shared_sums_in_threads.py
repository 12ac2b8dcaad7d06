"""Sums through shared memory; the ranks are threads of this process, which map one file."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from lightning_ppo.speed.shared_sums import SharedSums, file_size

SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_gets_the_sum_and_the_maximum_of_all(ranks):
    file = os.memfd_create("test")
    os.posix_fallocate(file, 0, file_size(ranks))

    def reduced(rank):
        sums = SharedSums(os.dup(file), rank, ranks, timeout=20.0)
        found = []
        for call in range(6):  # either slot several times
            own = torch.tensor([[1.0, -2.0], [0.5, 3.0]]) * 10.0**rank + call
            found += [sums.reduce(own, SUM), sums.reduce(own, MAX), sums.reduce(own.long(), SUM)]
        sums.close()
        return found

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(reduced, range(ranks)))
    os.close(file)
    for call in range(6):
        every = torch.stack([torch.tensor([[1.0, -2.0], [0.5, 3.0]]) * 10.0**rank + call for rank in range(ranks)])
        for found in results:
            total, largest, whole = found[3 * call : 3 * call + 3]
            torch.testing.assert_close(total, every.sum(0))
            assert torch.equal(largest, every.amax(0)) and torch.equal(whole, every.long().sum(0))
