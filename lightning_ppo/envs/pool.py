"""EnvPool's tasks, stepped by C++ threads, as a vector environment like any other."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lightning_ppo.envs.stagger import first_lengths
from lightning_ppo.support.errors import ConfigError, EnvironmentFault, nearest
from lightning_ppo.support.packages import install
from lightning_ppo.support.tree import tree_store

OURS = ("num_envs", "batch_size", "seed", "env_seed")
"""Settings of EnvPool that are not the user's."""
SAME_AS_GYMNASIUM = (
    *("HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5"),
    "Walker2d-v5",
)
"""Tasks whose steps, rewards, ends and first observations are tested to be Gymnasium's, up to rounding."""


class EnvPoolVectorEnv(VectorEnv):
    """N copies of an EnvPool task.

    EnvPool takes its seeds where it is built, so each reset with seeds builds a new pool. Its mode is NEXT_STEP: with
    the end of an episode comes its final observation, and the next step only resets. Where an episode ends by itself in
    the very step that reaches the time limit, EnvPool reports the truncation alone.

    Attributes:
        stagger: Cut the first episode of each copy off at another time (see `envs.stagger`).
        max_episode_steps: The task's time limit.

    Args:
        task_id: A name of `envpool.list_all_envs()`.
        num_envs: N.
        kwargs: Settings of the task; `num_threads` is one of them.

    Raises:
        ConfigError: If a setting in `kwargs` is not the user's.
        EnvironmentFault: If EnvPool is missing or has no such task.
    """

    seeded_by_copy = True
    stagger = False

    def __init__(self, task_id: str, num_envs: int, kwargs: dict[str, Any]) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        for name in OURS:
            if name in kwargs:
                raise ConfigError(f"env.kwargs.{name}: set by env.num_envs and seed; leave it out")
        try:
            self._envpool: Any = importlib.import_module("envpool")
        except ImportError:
            raise EnvironmentFault(f"env.backend: envpool needs the package envpool: {install('envpool')}") from None
        known = self._envpool.list_all_envs()
        if task_id not in known:
            near = nearest(task_id, known)
            raise EnvironmentFault(f"env.id: EnvPool has no task {task_id!r}; did you mean {near}?")
        self._task = {"task_id": task_id, "num_envs": num_envs, **kwargs}
        spec = self._envpool.make_spec(**self._task)
        self.num_envs = num_envs
        with _quiet():
            self.single_observation_space = spec.gymnasium_observation_space
        self.single_action_space = _as_float32(spec.gymnasium_action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._action_dtype = spec.gymnasium_action_space.dtype
        self.max_episode_steps = int(getattr(spec.config, "max_episode_steps", 0))
        self._pool: Any = None
        self._limits, self._steps = np.zeros(num_envs, dtype=np.int64), 0
        self._cut = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start all episodes anew, copy i from `seed[i]`, or from `seed + i` where it is one number."""
        if seed is not None or self._pool is None:
            first = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
            # EnvPool's seeds are signed 32-bit numbers
            seeds = {} if first is None else {"env_seed": [int(value) % 2**31 for value in first]}
            self.close_extras()
            self._pool = self._envpool.make_gymnasium(**self._task, **seeds)
            if self.stagger:
                self._limits, self._steps = first_lengths(first, self.max_episode_steps, self.num_envs), 0
                self._cut = np.zeros(self.num_envs, dtype=np.bool_)
        with _quiet():
            return self._pool.reset()

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Step all copies with actions (N, ...)."""
        observations, rewards, terminations, truncations, infos = self._pool.step(
            np.asarray(actions, self._action_dtype)
        )
        if self._steps > self._limits.max():  # every first episode is over
            return observations, rewards, terminations, truncations, infos
        over = self._cut
        if over.any():  # EnvPool has stepped these once more, where its mode says that a step only resets
            fresh, shown = self._pool.reset(np.flatnonzero(over).astype(np.int32))
            tree_store(observations, shown["env_id"], fresh)
            rewards[over], terminations[over], truncations[over] = 0.0, False, False
        ended = terminations | truncations
        self._steps += 1
        self._cut = (self._limits == self._steps) & ~ended
        self._limits[ended] = 0
        return observations, rewards, terminations, truncations | self._cut, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Gymnasium about the bounds of EnvPool's own spaces."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _as_float32(space: gymnasium.Space) -> gymnasium.Space:
    """Return the space with float32 numbers, which Gymnasium's MuJoCo tasks take, so that agents fit both."""
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space
