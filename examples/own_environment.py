"""An environment of your own: a small `gymnasium.Env`, trained and evaluated.

    python examples/own_environment.py                  # about 10 seconds
    python examples/own_environment.py --steps 2000     # a short try

An environment is named by its import path, `module:Class`. The same works on the command line, from the root of the
repository:

    lightning-ppo train env.id=examples.own_environment:Docking total_env_steps=50000
"""

import argparse
from typing import Any

import gymnasium
import numpy as np
import pytorch_lightning as pl

from lightning_ppo import PPO, RolloutDataModule


class Docking(gymnasium.Env):
    """Bring a cart on a rail to rest at the dock; the action is its acceleration.

    Attributes that are plain data, like those below, are saved with checkpoints, so that training resumes in the middle
    of an episode.

    Args:
        max_steps: Steps after which an episode is cut off.
    """

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, max_steps: int = 100) -> None:
        self.max_steps = max_steps
        self.position = self.velocity = 0.0
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start somewhere on the rail, at rest."""
        super().reset(seed=seed)  # seeds self.np_random, the one source of chance to use
        self.position = float(self.np_random.uniform(-1.0, 1.0))
        self.velocity = 0.0
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Accelerate for a tenth of a second."""
        acceleration = float(action[0])
        self.velocity = float(np.clip(self.velocity + 0.1 * acceleration, -1.0, 1.0))
        self.position = float(np.clip(self.position + 0.1 * self.velocity, -1.0, 1.0))
        self.steps += 1
        docked = abs(self.position) < 0.1 and abs(self.velocity) < 0.1
        reward = 10.0 if docked else -abs(self.position) - 0.1 * acceleration**2
        # the task is over: terminated; it would go on and only the clock says stop: truncated
        terminated, truncated = docked, self.steps >= self.max_steps
        return self._observation(), reward, terminated, truncated, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.position, self.velocity], dtype=np.float32)


def main(total_env_steps: int = 50_000) -> float:
    """Train, evaluate, and return the mean return of 20 episodes."""
    pl.seed_everything(1)
    data = RolloutDataModule(
        "own_environment:Docking",
        num_envs=8,
        num_steps=128,
        env_kwargs={"max_steps": 100},
        evaluation={"episodes": 0, "final_episodes": 20},
    )
    model = PPO(data.observation_space, data.action_space, total_env_steps=total_env_steps)
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    (metrics,) = trainer.test(model, data)
    return metrics["test/return_mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train in an environment of your own.")
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps to train for")
    main(parser.parse_args().steps)
