"""A curriculum: a callback makes the task harder as the agent gets better.

    python examples/curriculum.py                   # about 10 seconds; the progress bar shows the length
    python examples/curriculum.py --no-curriculum   # the hard task from the start: hardly anything is learnt
    python examples/curriculum.py --steps 2000      # a short try

The callback sets an attribute of the training environments between two rollouts. That reaches every copy, also those
that other processes step (`env.backend=async`, `rollout.processes`, `rollout.overlap`). Evaluation has environments of
its own, which keep the full difficulty. Where difficulty depends on nothing but the time, the callback
`lightning_ppo.run.curriculum.SetProgress` does it.

On the command line, from the root of the repository:

    lightning-ppo train env.id=examples.curriculum:Corridor 'callbacks=[examples.curriculum.Curriculum]'
"""

import argparse
from typing import Any

import gymnasium
import numpy as np
import pytorch_lightning as pl

from lightning_ppo import PPO, RolloutDataModule

FULL_LENGTH = 30


class Corridor(gymnasium.Env):
    """Walk to the right end of a corridor; only the end is rewarded, so a long one is hardly ever crossed by chance.

    Args:
        length: Steps from the start to the end.
    """

    observation_space = gymnasium.spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = FULL_LENGTH) -> None:
        self.length = length
        self.position = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start at the left end."""
        super().reset(seed=seed)
        self.position = self.steps = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Walk right (1) or left (0)."""
        self.position = max(0, self.position + (1 if action == 1 else -1))
        self.steps += 1
        arrived = self.position >= self.length
        return self._observation(), float(arrived), arrived, self.steps >= 2 * FULL_LENGTH, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.position], dtype=np.float32)


class Curriculum(pl.Callback):
    """Lengthens the corridor whenever most of the latest training episodes arrive.

    Args:
        length: Where it starts.
        goal: Mean training return that makes it longer.
    """

    def __init__(self, length: int = 3, goal: float = 0.9) -> None:
        self.length, self.goal = length, goal

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the length of this moment."""
        trainer.datamodule.set_attr("length", self.length)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Lengthen the corridor after an update, before the next rollout; a batch is a rollout."""
        reached = trainer.callback_metrics.get("rollout/return_mean", 0.0)
        if reached >= self.goal and self.length < FULL_LENGTH:
            self.length += 1
            trainer.datamodule.set_attr("length", self.length)
        pl_module.log("curriculum/length", float(self.length), prog_bar=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a resumed run goes on with the same length."""
        return {"length": self.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the length of a checkpoint."""
        self.length = state_dict["length"]


def main(total_env_steps: int = 30_000, curriculum: bool = True) -> float:
    """Train with or without the curriculum and return the mean return of 20 episodes in the full corridor."""
    pl.seed_everything(1)
    data = RolloutDataModule(
        "curriculum:Corridor", num_envs=8, num_steps=64, evaluation={"episodes": 0, "final_episodes": 20}
    )
    model = PPO(data.observation_space, data.action_space, total_env_steps=total_env_steps)
    callbacks = [Curriculum()] if curriculum else []
    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks
    )
    trainer.fit(model, data)
    (metrics,) = trainer.test(model, data)
    return metrics["test/return_mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train with a curriculum.")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps to train for")
    parser.add_argument("--no-curriculum", action="store_true", help="train in the full corridor from the start")
    options = parser.parse_args()
    main(options.steps, not options.no_curriculum)
