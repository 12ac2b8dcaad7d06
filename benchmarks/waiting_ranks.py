"""What two ranks take for a sum through shared memory, by how long they wait for each other without sleeping.

Each rank computes for about 200 us, as for a small minibatch, and takes part in the sum of 10,000 numbers. Run it
beside other programs, and alone. Processor time in the sum is the figure to compare.

    python benchmarks/waiting_ranks.py --rounds 3
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import torch.distributed as dist

from lightning_ppo.speed.shared_sums import SPIN_SECONDS, SharedSums, file_size


class Fixed(SharedSums):
    """Waits for as long without sleeping however often that was in vain."""

    def _wait_for(self, other: int) -> None:
        super()._wait_for(other)
        self._spin = SPIN_SECONDS


class Never(SharedSums):
    """Sleeps at once."""

    def _wait_for(self, other: int) -> None:
        self._spin = 0.0
        super()._wait_for(other)


VARIANTS = {
    "without sleep, up to 1 ms": Fixed,
    "without sleep, less where it was in vain": SharedSums,
    "with sleep at once": Never,
}


def measure(kind: type[SharedSums], file: int, rank: int, calls: int) -> list[float]:
    """Return what a rank takes: microseconds by the clock for each call, of which of processor time in the sum."""
    torch.set_num_threads(1)
    sums, numbers, matrix = kind(os.dup(file), rank, 2, 300.0), torch.randn(10_000), torch.randn(128, 128)
    sums.reduce(numbers, dist.ReduceOp.SUM)
    started, processor = time.perf_counter(), 0.0
    for _ in range(calls):
        for _ in range(4):
            matrix = (matrix @ matrix).clamp(-1.0, 1.0)
        before = time.thread_time()
        sums.reduce(numbers, dist.ReduceOp.SUM)
        processor += time.thread_time() - before
    return [1e6 * (time.perf_counter() - started) / calls, 1e6 * processor / calls]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--calls", type=int, default=1500, help="sums in each measurement (default: 1500)")
    options = parser.parse_args()
    for _ in range(options.rounds):
        for name, kind in VARIANTS.items():
            file, (read, write) = os.memfd_create("sums"), os.pipe()
            os.posix_fallocate(file, 0, file_size(2))
            ranks = []
            for rank in range(2):
                if (process := os.fork()) == 0:
                    os.write(write, f"{json.dumps(measure(kind, file, rank, options.calls))}\n".encode())
                    os._exit(0)
                ranks.append(process)
            for process in ranks:
                os.waitpid(process, 0)
            rows = [json.loads(line) for line in os.read(read, 4096).decode().splitlines()]
            wall, processor = (sum(values) / 2 for values in zip(*rows, strict=True))
            print(f"{name:42} {wall:6.0f} us for each, {processor:5.0f} us of processor in the sum", flush=True)
            for descriptor in (file, read, write):
                os.close(descriptor)


if __name__ == "__main__":
    main()
