"""One of several ranks that reduce through shared memory.

Where memory is shared, the last rank dies in the end. What the others found is in OUT.RANK.
"""

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_ppo.speed import shared_sums
from lightning_ppo.support import distributed
from lightning_ppo.support.errors import RankLostError

REDUCE = {"sum": distributed.sum_over_ranks, "max": distributed.max_over_ranks}
OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


def main(out: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{out}.store", rank=rank, world_size=world)
    connect = partial(shared_sums.connect, torch.device("cpu"), 1)
    distributed.join_ranks(connect)
    distributed.join_ranks(connect)  # as a second fit does
    found = {"shared": distributed._shared is not None, "different": [], "changed": 0}
    numbers, pauses = torch.Generator().manual_seed(rank), random.Random(rank)
    for turn in range(300):
        shape = [(), (1,), (7,), (3, 5), (11_085,)][turn % 5]
        dtype = (torch.float32, torch.float64, torch.int64, torch.bfloat16)[turn % 4]
        name = ("sum", "max")[turn % 2]
        tensor = (100 * torch.randn(shape, generator=numbers)).to(dtype)
        before, expected = tensor.clone(), tensor.clone()
        if pauses.random() < 0.05:
            time.sleep(pauses.random() * 0.01)
        reduced = REDUCE[name](tensor)
        dist.all_reduce(expected, OPERATIONS[name])
        found["changed"] += not torch.equal(tensor, before)
        tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 0.0)
        same = [torch.empty_like(reduced) for _ in range(world)]
        dist.all_gather(same, reduced)
        close = torch.allclose(reduced.double(), expected.double(), rtol=tolerance, atol=100 * tolerance)
        if reduced.shape != tensor.shape or not close or any(not torch.equal(x, reduced) for x in same):
            found["different"].append(turn)
    for turn in range(2_000):  # one right after the other
        if int(distributed.sum_over_ranks(torch.tensor([turn + rank]))) != world * turn + sum(range(world)):
            found["different"].append(300 + turn)
    large = torch.full((300_000,), float(rank))
    found["large"] = float(distributed.max_over_ranks(large).min())
    if found["shared"]:
        found["errors"] = watch_a_death(out, rank, world)
    Path(f"{out}.{rank}").write_text(json.dumps(found))


def watch_a_death(out: str, rank: int, world: int) -> list[str]:
    """Let the last rank be late, then die; return what each of the others says."""
    if rank == world - 1:
        while not all(Path(f"{out}.{other}.late").exists() for other in range(rank)):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    errors = []
    for distributed._shared._timeout in (1.0, 120.0):  # it is late, then it is dead
        try:
            distributed.sum_over_ranks(torch.zeros(3))
        except RankLostError as error:
            errors.append(str(error))
        Path(f"{out}.{rank}.late").touch()
    return errors
