"""All-reduce through memory that the CPU ranks of one machine share.

An update of a small network makes hundreds of all-reduces of some ten kilobytes per iteration. Through gloo's sockets
and threads each of them costs half a millisecond, or several where all cores are busy, as much as the gradients
themselves; through memory that all ranks map, some ten microseconds.
"""

import fcntl
import mmap
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_ppo.support.cores import usable_cores
from lightning_ppo.support.errors import RankLostError

SLOT_BYTES = 1 << 20
"""Size of the largest tensor that goes this way; for larger ones sockets do as well."""
LINE_BYTES = 64
"""Each rank's counter has a cache line of its own."""
HEADER_BYTES = 1 << 16
TOKEN_BYTES = 16
"""At the end of the header, random: who opens the file knows by them that it is the right one."""
SPIN_SECONDS = 1e-3
"""Ranks that come no later than this are waited for without sleeping, where every rank has a core of its own.

Each wait that takes longer halves the time, down to `SLEEP_SECONDS`, and each that does not doubles it: where other
programs take turns with the ranks, waiting without sleep keeps the core from the one that is waited for."""
SLEEP_SECONDS = 2e-5
PROBE_SECONDS = 0.5
"""How often a waiting rank looks whether the one it waits for still lives."""

COMBINE: dict[dist.ReduceOp.RedOpType, Callable[[Tensor, Tensor], Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.MAX: torch.maximum,
}


class SharedSums:
    """Reductions of CPU tensors over the ranks of one machine, the same bits on each; all ranks make the same calls.

    A rank writes its tensor to a slot of its own, counts up, waits until all have counted as far, and reduces the slots
    in the order of the ranks. It has two slots and takes them in turn: before it writes to one again, it has waited for
    the others to count once more, so they have read it.

    Each rank holds a lock on a byte of the file. It ends with its process, which is how others notice.

    Args:
        file: Descriptor of a file of `file_size(ranks)` bytes, mapped by all ranks.
        rank: This process's.
        ranks: How many there are.
        timeout: Seconds to wait for another rank.
    """

    def __init__(self, file: int, rank: int, ranks: int, timeout: float) -> None:
        self.rank = rank
        self._file, self._timeout = file, timeout
        self._others = [other for other in range(ranks) if other != rank]
        memory = mmap.mmap(file, file_size(ranks))
        self._counts = memoryview(memory)[:HEADER_BYTES].cast("q")[:: LINE_BYTES // 8]
        self._slots = [
            [torch.frombuffer(memory, dtype=torch.uint8, count=SLOT_BYTES, offset=start) for start in turn]
            for turn in _slot_offsets(ranks)
        ]
        self._views: dict[tuple[int, torch.dtype], list[list[Tensor]]] = {}
        self._calls = 0
        self._longest_spin = self._spin = SPIN_SECONDS if usable_cores() >= ranks else 0.0
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)

    def takes(self, tensor: Tensor) -> bool:
        """Return whether `reduce` is for tensors like this."""
        return tensor.device.type == "cpu" and tensor.nbytes <= SLOT_BYTES

    def reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Return the sum or maximum of the tensors of all ranks, which have one shape and dtype.

        Raises:
            RankLostError: If another rank ended, or did not come in time.
        """
        self._calls += 1
        slots = self._typed(tensor.numel(), tensor.dtype)[self._calls % 2]
        slots[self.rank].copy_(tensor.detach().reshape(-1))
        self._counts[self.rank] = self._calls
        for other in self._others:
            if self._counts[other] < self._calls:
                self._wait_for(other)
        combine = COMBINE[operation]
        total = combine(slots[0], slots[1])
        for slot in slots[2:]:
            total = combine(total, slot)
        return total.view(tensor.shape)

    def close(self) -> None:
        """Let go of the file and of the lock on it."""
        os.close(self._file)

    def _typed(self, numel: int, dtype: torch.dtype) -> list[list[Tensor]]:
        """Return the beginnings of the slots as `numel` numbers, by turn and rank."""
        key = numel, dtype
        if key not in self._views:
            self._views[key] = [[slot[: numel * dtype.itemsize].view(dtype) for slot in turn] for turn in self._slots]
        return self._views[key]

    def _wait_for(self, other: int) -> None:
        started, probe = time.perf_counter(), PROBE_SECONDS
        while self._counts[other] < self._calls:
            waited = time.perf_counter() - started
            if waited < self._spin:
                continue
            time.sleep(SLEEP_SECONDS)
            if waited > probe:
                probe = waited + PROBE_SECONDS
                with suppress(OSError):  # which means that the other holds its lock
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, other)
                    raise RankLostError(f"rank {other} has ended; see its message. This rank ({self.rank}) ends, too")
            if waited > self._timeout:
                raise RankLostError(f"rank {other} has not come to a collective operation for {waited:.0f} s")
        late = time.perf_counter() - started > self._spin
        self._spin = min(self._longest_spin, max(self._spin / 2 if late else self._spin * 2, SLEEP_SECONDS))


def file_size(ranks: int) -> int:
    """Return how many bytes the ranks share."""
    return HEADER_BYTES + 2 * ranks * SLOT_BYTES


def _slot_offsets(ranks: int) -> list[list[int]]:
    """Return where the slots begin, by turn and rank."""
    return [[HEADER_BYTES + (turn * ranks + rank) * SLOT_BYTES for rank in range(ranks)] for turn in range(2)]


def connect(device: torch.device, num_nodes: int) -> SharedSums | None:
    """Return reductions through shared memory, None where a rank cannot have it; all ranks of the group call it.

    Only CPU ranks of one Linux machine have it. A rank reads what another wrote when a counter, written afterwards,
    says so: without barriers, which Python has not, that needs the memory model of x86.

    The memory is a file without a name, so that nothing of it is left behind, whichever rank is killed and when.

    Args:
        device: This rank's.
        num_nodes: Number of machines.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if device.type != "cpu" or num_nodes > 1 or sys.platform != "linux" or not x86:
        return None
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert dist.group.WORLD is not None
    timeout = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    file, token = _create(ranks) if rank == 0 else (None, b"")
    places = [None if file is None else (f"/proc/{os.getpid()}/fd/{file}", token)]
    dist.broadcast_object_list(places)
    if rank != 0 and places[0] is not None:
        file = _open(*places[0])
    missing = torch.tensor([file is None], dtype=torch.int32)
    dist.all_reduce(missing)
    if file is not None and missing:
        os.close(file)
    sums = None if file is None or missing else SharedSums(file, rank, ranks, timeout)
    dist.barrier()
    return sums


def _create(ranks: int) -> tuple[int | None, bytes]:
    """Return a new file in memory with room for the ranks, None if there is none, and what tells it from others."""
    token = os.urandom(TOKEN_BYTES)
    if ranks * LINE_BYTES > HEADER_BYTES - TOKEN_BYTES:
        return None, token
    try:
        file = os.memfd_create("lightning_ppo")
    except OSError:
        return None, token
    try:
        os.posix_fallocate(file, 0, file_size(ranks))  # running out of memory later would kill the process
        os.pwrite(file, token, HEADER_BYTES - TOKEN_BYTES)
    except OSError:
        os.close(file)
        return None, token
    return file, token


def _open(path: str, token: bytes) -> int | None:
    """Return the file of another rank; None if it is not to be had, or another one, as in another container."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with suppress(OSError):
        if os.pread(file, TOKEN_BYTES, HEADER_BYTES - TOKEN_BYTES) == token:
            return file
    os.close(file)
    return None
