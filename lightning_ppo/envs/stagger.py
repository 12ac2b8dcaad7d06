"""Copies of one environment that do not move through their episodes in step."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv


class FirstEpisodeLimit(gymnasium.Wrapper):
    """Cuts off the first episode, as a truncation, after a random share of the time limit.

    Short rollouts of copies that all started together show one phase of the episode after the other, and learning
    follows the phase (Bharthulwar, Tao and Su 2025, "Staggered Environment Resets Improve Massively Parallel On-Policy
    Reinforcement Learning"). The share depends on nothing but the seed of the first reset.

    Args:
        env: The environment; without a time limit nothing is cut off.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.limit = 0
        """Steps after which the present episode is cut off; 0 lets it be."""
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        time_limit = self.env.spec.max_episode_steps if self.env.spec is not None else None
        first = self.steps == 0 and time_limit is not None
        self.limit = int(np.random.default_rng(seed).integers(1, time_limit, endpoint=True)) if first else 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and end the first episode where its time has come."""
        if not self.limit:
            return self.env.step(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return observation, reward, terminated, truncated or self.steps >= self.limit, info


def is_staggered(env: VectorEnv) -> bool:
    """Return whether the first episodes of a vector environment's copies are cut off at different times."""
    return bool((env.metadata or {}).get("staggered") or getattr(env.unwrapped, "stagger", False))
