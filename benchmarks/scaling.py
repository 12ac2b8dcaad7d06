"""Measure the cost and gain of more ranks: collectives, and weak scaling with the environments per rank fixed.

`python benchmarks/scaling.py` measures two CPU ranks (gloo, one thread each) against one on this machine, interleaved,
and prints the tables of docs/scaling.md. Nothing else should run meanwhile. On a cluster, its launcher starts the part
that measures collectives: `torchrun ... benchmarks/scaling.py --collectives out.json` (nccl where there are GPUs).
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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
SIZES = (1, 16, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
"""Numbers of float32 values that are reduced; a 64-64 actor-critic has about ten thousand parameters."""


def time_collectives(out: str) -> None:
    """Write the median seconds of an all-reduce of each size, as one rank of a process group.

    Through the process group and, where ranks share memory, through that.
    """
    sys.path.insert(0, str(ROOT))
    from lightning_ppo.speed import shared_sums
    from lightning_ppo.support import distributed

    torch.set_num_threads(1)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    distributed.join_ranks(partial(shared_sums.connect, device, nodes))
    found: dict[int, list[float]] = {}
    for size in SIZES:
        tensor, found[size] = torch.ones(size, device=device), []
        for reduce in (dist.all_reduce, distributed.sum_over_ranks):
            seconds = []
            for _ in range(200 if size <= 100_000 else 20):
                dist.barrier()
                started = time.perf_counter()
                reduce(tensor)
                tensor[0].item()  # has arrived
                seconds.append(time.perf_counter() - started)
                tensor.fill_(1.0)
            found[size] += [statistics.median(seconds), statistics.mean(seconds)]
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def count_collectives(out: str) -> None:
    """Write what one iteration with the default settings sends besides gradients, as one of two ranks."""
    import pytorch_lightning as pl

    sys.path.insert(0, str(ROOT))
    from lightning_ppo import PPO, RolloutDataModule
    from lightning_ppo.support import distributed

    calls: list[int] = []

    def counted(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapped(tensor: torch.Tensor, *args: object) -> torch.Tensor:
            calls.append(tensor.nbytes)
            return original(tensor, *args)

        return wrapped

    distributed._over_ranks = counted(distributed._over_ranks)
    data = RolloutDataModule("HalfCheetah-v5", rollouts_per_epoch=3, seed=1, evaluation={"episodes": 0})
    model = PPO(data.observation_space, data.action_space)
    counts: list[list[int]] = []

    class Read(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            counts.append(list(calls))
            calls.clear()

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    stop = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", callbacks=[Read()], **quiet, **stop)
    trainer.fit(model, data)
    settings = model.update_settings
    minibatches = (settings.epochs or 1) * data.num_steps * data.num_envs // settings.minibatch_size
    parameters = sum(p.numel() for p in model.parameters())
    if trainer.is_global_zero:
        found = {"minibatches": minibatches, "parameters": parameters, "calls": counts[-1]}
        Path(out).write_text(json.dumps(found))


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
    launch(ranks, str(ROOT / "train.py"), "compile=false", *settings, *parallel, *quiet, f"run_dir={run_dir}")
    return json.loads((run_dir / "summary.json").read_text())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps per rank and run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "CartPole-v1"])
    parser.add_argument("--collectives", metavar="OUT", help="only time collectives, as one rank")
    parser.add_argument(
        "--count", metavar="OUT", help="only count the collectives of an iteration, as one of two ranks"
    )
    options = parser.parse_args()
    if options.collectives:
        return time_collectives(options.collectives)
    if options.count:
        return count_collectives(options.count)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, gloo\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch(2, __file__, "--collectives", str(folder / "collectives.json"))
        print("| float32 values | process group, median (mean), ms | as the update does it, ms |\n|---|---|---|")
        for size, seconds in json.loads((folder / "collectives.json").read_text()).items():
            median, mean, own_median, own_mean = (f"{1e3 * value:.3f}" for value in seconds)
            print(f"| {int(size):,} | {median} ({mean}) | {own_median} ({own_mean}) |")
        launch(2, __file__, "--count", str(folder / "count.json"))
        count = json.loads((folder / "count.json").read_text())
        others = [size for size in count["calls"] if size < 4 * count["parameters"]]
        print(
            f"\nOne iteration (HalfCheetah-v5): {count['minibatches']} gradient all-reduces of "
            f"{4 * count['parameters']:,} bytes, and {len(others)} others of {sum(others):,} bytes together"
        )
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
