"""Agents that see images, for make_sb3.py and test_import_sb3.py: their environment, and their weights as formulas."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SHAPE = (36, 40, 3)
OBSERVATIONS = np.random.default_rng(0).integers(256, size=(20, 1, 1, 3)) * np.random.default_rng(1).random(
    (20, *SHAPE)
)
OBSERVATIONS = OBSERVATIONS.astype(np.uint8)
"""(20, H, W, C), each of a colour of its own."""


class Images(gymnasium.Env):
    """Shows the observations above one after the other; the reward is 1 for action 0."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, SHAPE, np.uint8)
        self.action_space = spaces.Discrete(3)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return OBSERVATIONS[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return OBSERVATIONS[self.t], float(action == 0), self.t == len(OBSERVATIONS) - 1, False, {}


def weights(name: str, shape: list[int]) -> np.ndarray:
    """Return the values of a parameter, which depend on its name."""
    count, seed = int(np.prod(shape)), sum(name.encode())
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    return (
        (np.sin(np.arange(count) * (1.0 + seed % 97) ** 2) * np.sqrt(12.0 / inputs)).reshape(shape).astype(np.float32)
    )
