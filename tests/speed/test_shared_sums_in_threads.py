"""Sums through shared memory; the ranks are threads of this process, which map one file."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from lightning_ppo.speed import shared_sums
from lightning_ppo.speed.shared_sums import SLEEP_SECONDS, SPIN_SECONDS, SharedSums, file_size

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


class Clock:
    """Stands for `time`; looking at it takes a microsecond."""

    now = slept = 0.0

    def perf_counter(self):
        self.now += 1e-6
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds


def test_a_rank_that_waits_in_vain_gives_its_core_away(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(shared_sums, "time", clock)
    monkeypatch.setattr(shared_sums, "usable_cores", lambda: 2)
    file = os.memfd_create("test")
    os.posix_fallocate(file, 0, file_size(2))
    sums = SharedSums(file, 0, 2, timeout=20.0)

    class Counts:
        def __getitem__(self, other):
            return sums._calls if clock.now >= self.comes else -1

    def spinning(late):
        counts.comes, before, slept = clock.now + late, clock.now, clock.slept
        sums._wait_for(1)
        return clock.now - before - (clock.slept - slept)

    sums._counts = counts = Counts()
    first = spinning(5e-3)
    for _ in range(10):
        last = spinning(5e-3)
    assert first > SPIN_SECONDS and last < 0.5 * first
    assert sums._spin == SLEEP_SECONDS
    for _ in range(10):
        spinning(1e-6)
    assert sums._spin == SPIN_SECONDS
    assert spinning(0.5e-3) >= 0.5e-3
    sums.close()
