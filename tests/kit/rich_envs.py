"""Environments with masks, observations of several parts and actions of several kinds."""

import os
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from tests.kit.envs import Count

THREE = spaces.Discrete(3, start=2)


def legal_at(t: int) -> np.ndarray:
    """Which of three actions are legal at time t: two of them."""
    return np.arange(3) != t % 3


class Forbidden(gymnasium.Env):
    """Forbids an action that changes from step to step, fails if it is taken, and leaves none where an episode ends.

    Rewards are 1. Mask and info are the same objects at every step.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        source: str = "info",
        length: int = 4,
        blocked_at: int = -1,
        render_mode: str | None = None,
        dies_before: str | None = None,
    ) -> None:
        self.source, self.length, self.blocked_at, self.render_mode = source, length, blocked_at, render_mode
        self.dies_before = dies_before
        self.action_space = THREE
        seen = spaces.Box(0.0, 100.0, (1,), np.float32)
        self.observation_space: Space = seen
        if source.startswith("observation"):
            self.observation_space = spaces.Dict({"legal": spaces.MultiBinary(3), "t": seen})
        self.legal = np.zeros(3, np.int8)
        self.t = 0

    def legal_actions(self) -> np.ndarray:
        return self.legal

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        self.legal[:] = legal_at(self.t) & (0 <= self.t < self.length) & (self.t != self.blocked_at)
        seen = np.array([self.t], np.float32)
        if self.source.startswith("observation"):
            return {"legal": self.legal, "t": seen}, {}
        return seen, {"action_mask": self.legal} if self.source == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.dies_before is not None and not Path(self.dies_before).exists():
            Path(self.dies_before).touch()
            os._exit(3)
        assert legal_at(self.t)[action - 2], f"action {action} is not legal at {self.t}"
        self.t += 1
        observation, info = self._shown()
        return observation, 1.0, self.t >= self.length, False, info

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), self.t, np.uint8)


class Guided(Count):
    """Dict observations, masks in infos, two discrete actions and a continuous one."""

    def __init__(self) -> None:
        super().__init__(5)
        self.observation_space = spaces.Dict(
            {"count": spaces.Box(0.0, 9.0, (1,), np.float32), "side": spaces.Discrete(3)}
        )
        self.action_space = spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.Box(-1, 1, (1,))))

    def _seen(self, observation, info):
        mask = np.ones(7, dtype=np.int8)
        mask[self.t % 3] = 0
        return {"count": observation, "side": self.t % 3}, info | {"action_mask": mask}

    def reset(self, **kwargs):
        return self._seen(*super().reset(**kwargs))

    def step(self, action):
        assert int(action[0]) != self.t % 3, "a masked action was taken"
        observation, *rest, info = super().step(action)
        observation, info = self._seen(observation, info)
        return observation, *rest, info


class Mixed(gymnasium.Env):
    """Shows and takes something of every kind; its observations need float64."""

    def __init__(self) -> None:
        box = spaces.Box(-2.0, 2.0, (2,), np.float64)
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = spaces.Dict(
            box=box, choice=spaces.Discrete(3), bits=spaces.MultiBinary(2), image=image
        )
        self.action_space = spaces.Dict(force=spaces.Box(-0.5, 0.5, (2,), np.float32), choice=spaces.Discrete(2))

    def observe(self):
        draw = self.np_random
        bits, image = draw.integers(0, 2, 2, np.int8), draw.integers(0, 256, (36, 36, 1), np.uint8)
        return {"box": draw.uniform(-2.0, 2.0, 2), "choice": draw.integers(3), "bits": bits, "image": image}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        ended = bool(self.np_random.random() < 0.1)
        return self.observe(), float(action["force"].sum()), ended, False, {}


class Weigh(gymnasium.Env):
    """Episodes of one step whose reward is a weight that is shown; nothing can be done about it."""

    observation_space = spaces.Dict({"nothing": spaces.Box(0.0, 1.0, (1,)), "weight": spaces.Box(-1.0, 1.0, (1,))})
    action_space = spaces.Discrete(2)

    def _shown(self) -> dict[str, np.ndarray]:
        self.weight = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return {"nothing": np.zeros(1, np.float32), "weight": self.weight}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self.weight[0])
        return self._shown(), reward, True, False, {}
