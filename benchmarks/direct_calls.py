"""What the gradients of a compiled minibatch take with and without the tracer around the graph, in processor time.

The agent is that of HalfCheetah-v5 (17 observed numbers, 6 actions, two networks of 64x64), 64 rows, one thread. Both
ways take turns; the results are compared bit for bit.

    python benchmarks/direct_calls.py
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.rollout.shapes import Rollout

ROWS = 64


class Shapes(gymnasium.Env):
    """Shows and takes numbers of the shapes of HalfCheetah."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=17), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show other numbers."""
        self.steps += 1
        return self.np_random.normal(size=17), float(action.sum()), False, self.steps >= 200, {}


class Measured(pl.Callback):
    """Measures at the end of the first iteration.

    Args:
        calls: In each turn.
        turns: Of each way.
    """

    def __init__(self, calls: int, turns: int) -> None:
        self.calls, self.turns = calls, turns

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Rollout, batch_idx: int
    ) -> None:
        """Measure and print."""
        module: Any = pl_module
        update = module.minibatch_update
        gradients = update._compiled
        arguments = batch.flatten(1), torch.randperm(batch.num_steps * batch.num_envs)[:ROWS], torch.ones(())
        gradients(*arguments)  # the next call may go past the tracer
        direct, found, seconds = gradients._direct, {}, {"traced": [], "direct": []}
        for _ in range(self.turns):
            for name in seconds:
                gradients._direct = direct if name == "direct" else None
                seconds[name].append(self._time(lambda: gradients(*arguments)))
                found[name] = module.minibatch_update._flat.gradients.clone()
        gradients._direct = direct
        for name, values in seconds.items():
            print(f"{name:16} {1e6 * min(values):6.0f} us (to {1e6 * max(values):.0f})")
        print(f"clipping and Adam {1e6 * self._time(update.step):5.0f} us")
        print("same gradients" if torch.equal(*found.values()) else "OTHER GRADIENTS")

    def _time(self, call: Callable[[], Any]) -> float:
        started = time.process_time()
        for _ in range(self.calls):
            call()
        return (time.process_time() - started) / self.calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="in each turn (default: 1000)")
    parser.add_argument("--turns", type=int, default=5, help="of each way (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gymnasium.register("Shapes-v0", Shapes)
    data = RolloutDataModule("Shapes-v0", 8, 256, seed=1, stagger=False, rollouts_per_epoch=1)
    update = {"epochs": 1, "minibatch_size": ROWS}
    model = PPO(data.observation_space, data.action_space, update=update, compile=True)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    more: dict[str, Any] = {"enable_model_summary": False, "limit_val_batches": 0, "accelerator": "cpu"}
    callback = Measured(options.calls, options.turns)
    pl.Trainer(max_epochs=1, callbacks=[callback], **quiet, **more).fit(model, data)


if __name__ == "__main__":
    main()
