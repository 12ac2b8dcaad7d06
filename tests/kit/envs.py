"""Small environments whose right answers are known."""

import contextlib
import os
import random
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lightning_ppo import envs
from lightning_ppo.settings.environment import EnvConfig


def make_vector_env(
    env_id: str, num_envs: int, *, stagger: bool = False, render_mode: str | None = None, **settings: Any
) -> VectorEnv:
    """Return what `envs.make_vector_env` builds of settings; `max_restarts` asks for restarts."""
    if settings.get("max_restarts"):
        settings["on_error"] = "restart"
    return envs.make_vector_env(EnvConfig(env_id, num_envs, stagger=stagger, **settings), render_mode)


class Count(gymnasium.Env):
    """The observation is the number of steps since the reset; ends after `length` steps by `term` or `trunc`.

    The reward of step t (from 1) is `reward`, or t if `reward` is None.
    """

    def __init__(self, length: int = 4, end: str = "term", reward: float | None = 1.0) -> None:
        self.length, self.end, self.reward = length, end, reward
        self.observation_space = spaces.Box(0.0, 1000.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def _observation(self) -> np.ndarray:
        return np.array([self.t], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        ended = self.t >= self.length
        reward = float(self.t) if self.reward is None else self.reward
        return self._observation(), reward, ended and self.end == "term", ended and self.end == "trunc", {}


class Loop4(gymnasium.Env):
    """Four states in a circle, reward 1, never ends by itself; truncated after `limit` steps."""

    def __init__(self, limit: int = 8, end: str = "trunc") -> None:
        self.limit, self.end = limit, end
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def _observation(self) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[self.t % 4]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        ended = self.t >= self.limit
        return self._observation(), 1.0, ended and self.end == "term", ended and self.end == "trunc", {}


class Identity(gymnasium.Env):
    """Episodes of 100 steps; reward 1 where the action is the state (Box: within `epsilon` of it), else 0."""

    def __init__(self, action_space: gymnasium.Space, epsilon: float = 0.5) -> None:
        self.action_space = action_space
        self.discrete = isinstance(action_space, spaces.Discrete)
        size = int(action_space.n) if self.discrete else action_space.shape[0]
        self.observation_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.epsilon = epsilon
        self.t = 0

    def _next_observation(self) -> np.ndarray:
        if self.discrete:
            self.state = int(self.np_random.integers(self.action_space.n))
            return np.eye(int(self.action_space.n), dtype=np.float32)[self.state]
        self.state = self.np_random.uniform(-1.0, 1.0, self.action_space.shape).astype(np.float32)
        return self.state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._next_observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        hit = action == self.state if self.discrete else np.all(np.abs(action - self.state) <= self.epsilon)
        return self._next_observation(), float(hit), False, self.t >= 100, {}


class Villager:
    """Knows its neighbours, and the village it lives in."""

    def __init__(self, village: gymnasium.Env, number: int) -> None:
        self.village, self.number, self.visits = village, number, 0
        self.next: Villager = self

    def visit(self) -> int:
        self.visits += 1
        return self.number + self.visits


class Village(Count):
    """Objects that know each other in a ring, a table that never changes, and a history that grows over all episodes.

    The reward depends on all of them.
    """

    def __init__(self, size: int = 3, length: int = 20) -> None:
        super().__init__(length, "trunc")
        self.table = np.random.default_rng(0).normal(size=(2000, 8))
        self.history: list[dict[str, Any]] = []
        self.dice = random.Random(7)
        self.villagers = [Villager(self, i) for i in range(size)]
        for i, one in enumerate(self.villagers):
            one.next = self.villagers[(i + 1) % size]
        self.player = self.villagers[0]
        self.move = self.player.visit

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, _, *ends, info = super().step(action)
        record = {"t": self.t, "action": int(action), "luck": self.dice.random()}
        self.history.append(record)
        self.last = record
        score = self.move() + len(self.history) % 7 + self.history[-len(self.history) // 2]["luck"]
        self.last["luck"] += 1.0  # the record in the history, too
        self.player = self.player.next
        self.move = self.player.visit
        known = all(one.village is self for one in self.villagers) and any(one is self.player for one in self.villagers)
        return observation, score + self.table[self.t, 0] + 100.0 * known, *ends, info


class Bad(Count):
    """Misbehaves at step `at`: `raises`, `nan_observation`, `nan_reward` or `wrong_shape`."""

    def __init__(self, kind: str = "raises", at: int = 3) -> None:
        super().__init__(length=1000)
        self.kind, self.at = kind, at

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.t == self.at:
            if self.kind == "raises":
                raise ZeroDivisionError("the wheel came off")
            if self.kind == "nan_observation":
                observation = np.array([np.nan], dtype=np.float32)
            if self.kind == "nan_reward":
                reward = float("nan")
            if self.kind == "wrong_shape":
                observation = np.zeros(3, dtype=np.float32)
        return observation, reward, terminated, truncated, info


class Sleepy(Count):
    """Takes its time, now and then."""

    def step(self, action):
        if self.t % 3 == 2:
            time.sleep(0.01)
        return super().step(action)


class Wordy(Count):
    """Shows text, which no network takes."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)


class Hopeful(Count):
    """Needs a package that is not there."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")


def vector(
    makers: list[Any], mode: AutoresetMode = AutoresetMode.NEXT_STEP, kind: str = "sync", **kwargs: Any
) -> VectorEnv:
    """Return a vector environment of the given constructors."""
    if kind == "async":
        return AsyncVectorEnv(makers, autoreset_mode=mode, **kwargs)
    return SyncVectorEnv(makers, autoreset_mode=mode, **kwargs)


class Engine(Count):
    """Holds something that is not plain data."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.engine = object()


class Touchy(Count):
    """Does something wrong when it is given action 1 in its `at`-th step or later."""

    def __init__(self, kind: str = "raises", at: int = 1, length: int = 1000) -> None:
        super().__init__(length)
        self.kind, self.at = kind, at

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if action != 1 or self.t < self.at:
            return observation, reward, terminated, truncated, info
        if self.kind == "raises":
            raise ZeroDivisionError("the wheel\ncame off")
        if self.kind == "hangs":
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(60)
        if self.kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "deaf":  # to the interruption, as code that never returns to Python is
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(60)
        return {
            "array_reward": (observation, np.ones(1), False, False, {}),
            "text_reward": (observation, "much", False, False, {}),
            "nan_observation": (observation + np.nan, 1.0, False, False, {}),
            "infinite_reward": (observation, np.float32(np.inf), False, False, {}),
            "four": (observation, 1.0, False, {}),
            "nothing": None,
            "int_done": (observation, 1.0, 0, False, {}),
            "list_observation": ([0.0, 1.0], 1.0, False, False, {}),
            "no_info": (observation, 1.0, False, False, None),
        }[self.kind]
