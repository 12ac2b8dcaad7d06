"""The cost of memory: speed of agents with an LSTM, a GRU and a transformer compared with an MLP, at equal sizes.

    python benchmarks/recurrent.py              writes benchmarks/results/recurrent.csv and prints the table
    python benchmarks/recurrent.py --smoke      does it work? no figures kept

CartPole-v1, the default settings of update and networks, one thread. Runs are interleaved: every agent once, then every
agent again; figures are medians over iterations. Times are CPU time, which other work on the machine disturbs less; the
first iterations of a run do not count.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytorch_lightning as pl
import torch

from benchmarks.learning import RESULTS, cpu_name
from lightning_ppo import PPO, RolloutDataModule

WARM_UP = 2
"""Iterations of a run that do not count."""
ROUNDS = 3
SIZES = {"64 envs x 64 steps": (64, 64), "8 envs x 256 steps": (8, 256)}
CORES = {"MLP": None, "LSTM": "lstm", "GRU": "gru", "transformer": "transformer"}


class Stopwatch(pl.Callback):
    """Keeps the CPU time at the end of every iteration."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Take the time."""
        self.times.append(time.process_time())


def train(core: str | None, num_envs: int, num_steps: int, iterations: int) -> list[float]:
    """Return the seconds that each iteration of a new agent took, collecting included, after the warm-up."""
    pl.seed_everything(1, verbose=False)
    iterations += WARM_UP
    data = RolloutDataModule("CartPole-v1", num_envs, num_steps=num_steps, rollouts_per_epoch=iterations, seed=1)
    watch = Stopwatch()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[watch],
    )
    trainer.fit(PPO(data.observation_space, data.action_space, policy={"core": core}), data)
    ends = watch.times[WARM_UP - 1 :]
    return [after - before for before, after in pairwise(ends)]


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=6, help="of each run (default: 6)")
    parser.add_argument("--smoke", action="store_true", help="tiny, nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for label, (num_envs, num_steps) in {"tiny": (4, 32)}.items() if options.smoke else SIZES.items():
        seconds: dict[str, list[float]] = {name: [] for name in CORES}
        for _ in range(1 if options.smoke else ROUNDS):
            for name, core in CORES.items():
                seconds[name] += train(core, num_envs, num_steps, 1 if options.smoke else options.iterations)
        for name, times in seconds.items():
            ratio = statistics.median(times) / statistics.median(seconds["MLP"])
            speed = num_envs * num_steps / statistics.median(times)
            print(f"{label:20} {name:11} {speed:8.0f} env steps/s, {ratio:.2f} x the time of the MLP")
            rows.append({"size": label, "agent": name, "env_steps_per_second": round(speed), "ratio": f"{ratio:.2f}"})
    if options.smoke:
        return
    about = {
        "iterations": ROUNDS * options.iterations,
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }
    with open(RESULTS / "recurrent.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)


if __name__ == "__main__":
    main()
