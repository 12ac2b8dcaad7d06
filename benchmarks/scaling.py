"""Measure what more ranks cost and bring: collectives, and weak scaling with the environments per rank fixed.

`python benchmarks/scaling.py` measures two CPU ranks (gloo, one thread each) against one on this machine, interleaved,
and prints the tables of docs/scaling.md. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
SIZES = (1, 16, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
"""Numbers of float32 values that are reduced; a 64-64 actor-critic has about ten thousand parameters."""


def time_collectives(out: str) -> None:
    """Write the median seconds of an all-reduce of each size, as one rank of a process group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for size in SIZES:
        tensor, seconds = torch.ones(size), []
        for _ in range(200 if size <= 100_000 else 20):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - started)
            tensor.fill_(1.0)
        found[size] = statistics.median(seconds)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def launch(ranks: int, *command: str) -> None:
    """Run a Python command, under torchrun where there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *launcher, *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def speed(ranks: int, settings: list[str], folder: Path) -> dict[str, float]:
    """Return env steps/s of a training with this many ranks, over all of them, and the time shares of rank 0."""
    run_dir = folder / f"{ranks}-{time.monotonic_ns()}"
    parallel = [f"trainer.devices={ranks}", *(["trainer.strategy=ddp"] if ranks > 1 else [])]
    quiet = ["evaluation.episodes=0", "evaluation.final_episodes=0", "trainer.enable_progress_bar=false"]
    launch(ranks, str(ROOT / "train.py"), *settings, *parallel, *quiet, f"run_dir={run_dir}")
    return json.loads((run_dir / "summary.json").read_text())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps per rank and run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "CartPole-v1"])
    parser.add_argument("--collectives", metavar="OUT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collectives:
        return time_collectives(options.collectives)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, gloo\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch(2, __file__, "--collectives", str(folder / "collectives.json"))
        print("| float32 values | all-reduce over 2 ranks, ms |\n|---|---|")
        for size, seconds in json.loads((folder / "collectives.json").read_text()).items():
            print(f"| {int(size):,} | {1e3 * seconds:.3f} |")
        print("\n| environment | 1 rank, steps/s | 2 ranks, steps/s | factor |\n|---|---|---|---|", flush=True)
        for env in options.envs:
            speeds: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(options.repeats):
                for ranks in speeds:
                    settings = [f"env.id={env}", f"total_env_steps={options.steps * ranks}"]
                    speeds[ranks].append(speed(ranks, settings, folder)["env_steps_per_second"])
            one, two = (statistics.median(values) for values in speeds.values())
            spread = [f"{min(values):,.0f} to {max(values):,.0f}" for values in speeds.values()]
            print(f"| {env} | {one:,.0f} ({spread[0]}) | {two:,.0f} ({spread[1]}) | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
