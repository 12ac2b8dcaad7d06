"""Start the copies of one environment at different points of their episodes.

With short rollouts, copies that all started together show one phase of the episode after the other, and learning
follows the phase (Bharthulwar, Tao and Su 2025, "Staggered Environment Resets Improve Massively Parallel On-Policy
Reinforcement Learning"). So the first episode of each copy is cut off, as a truncation, after a random share of the
time limit that depends on nothing but the copy's seed: by a wrapper of the copy, by the vector environment itself if it
has an attribute `stagger`, by whoever resets the copies (autoreset DISABLED), or by setting counters of steps ahead.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

COUNTERS = ("steps", "elapsed_steps", "episode_length_buf", "progress_buf")
"""Attributes in which vector environments count the steps of each episode: Gymnasium's, rsl_rl's, Isaac Gym's."""

LIMITS = ("max_episode_steps", "max_episode_length", "time_limit")
"""Attributes with the number of steps after which they cut an episode off."""

NO_TIME_LIMIT = (
    "the copies tell no time limit; where all episodes last equally long, register the environment with "
    "max_episode_steps"
)
"""Why copies that are stepped one by one are not staggered."""

NO_LIMIT = 2**31 - 1
"""The value of some environments without a limit."""


def first_lengths(seeds: int | Sequence[int] | None, limits: Any, num_envs: int) -> np.ndarray:
    """Return after how many steps each copy's first episode is cut off, (N,) in 1..limit.

    Args:
        seeds: One for each copy, so that its length does not depend on who else is there; or one for all.
        limits: Time limit of all copies, or one for each.
        num_envs: N.
    """
    limits = np.broadcast_to(limits, num_envs)
    if isinstance(seeds, Sequence) and len(seeds) == num_envs:
        drawn = [np.random.default_rng(s).integers(1, n, endpoint=True) for s, n in zip(seeds, limits, strict=True)]
        return np.array(drawn, dtype=np.int64)
    first = seeds[0] if isinstance(seeds, Sequence) else seeds
    return np.random.default_rng(first).integers(1, limits, endpoint=True)


def time_limit(env: gymnasium.Env) -> int | None:
    """Return the number of steps after which an environment's episodes are truncated, None if there is no limit."""
    return env.spec.max_episode_steps if env.spec is not None else None


class FirstEpisodeLimit(gymnasium.Wrapper):
    """Cuts off the first episode of one copy.

    Args:
        env: The environment; without a time limit nothing is cut off.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.limit = 0
        """Steps after which the present episode is cut off; 0 lets it be."""
        self.steps = 0

    @property
    def stagger_limit(self) -> int | None:
        """The environment's time limit, None where it has none."""
        return time_limit(self.env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        limit = self.stagger_limit if self.steps == 0 else None
        self.limit = 0 if limit is None else int(first_lengths(seed, limit, 1)[0])
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and truncate the first episode if its time has come."""
        if not self.limit:
            return self.env.step(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return observation, reward, terminated, truncated or self.steps >= self.limit, info


class FirstEpisodeLimits(VectorWrapper):
    """Cuts off the first episodes of copies that whoever steps them resets, as truncations.

    Args:
        env: Its autoreset mode is DISABLED.
        time_limit: Of its episodes.
    """

    def __init__(self, env: VectorEnv, time_limit: int) -> None:
        super().__init__(env)
        self.time_limit = time_limit
        self.limits, self.steps = np.zeros(env.num_envs, dtype=np.int64), 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes anew, or those of the copies in `options["reset_mask"]`."""
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            self.limits[mask] = 0
        else:
            self.limits, self.steps = first_lengths(seed, self.time_limit, self.num_envs), 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and truncate the first episodes whose time has come."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self.steps += 1
        return observations, rewards, terminations, truncations | (self.limits == self.steps), infos


def prepare(env: VectorEnv, stagger: bool, why_not: str = "") -> VectorEnv:
    """Return a vector environment whose copies begin out of step from its next reset on, if they are to and can.

    Args:
        env: Not one of those whose copies are wrapped.
        stagger: Whether they are to.
        why_not: Why they are not to, although it was requested.
    """
    base = env.unwrapped
    if hasattr(base, "stagger"):
        base.stagger = stagger and _has_limit(getattr(base, "max_episode_steps", None))
        return mark(env, "itself" if base.stagger else "", "the task has no time limit" if stagger else why_not)
    if not stagger:
        return mark(env, "", why_not)
    if _clock(env) is not None:
        return mark(env, "clock")
    disabled = (base.metadata or {}).get("autoreset_mode") in (AutoresetMode.DISABLED, AutoresetMode.DISABLED.value)
    limit = next((value for name in LIMITS if _has_limit(value := getattr(base, name, None))), None)
    if disabled and limit is not None:
        return FirstEpisodeLimits(mark(env, "itself"), int(limit))
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        return mark(env, "", NO_TIME_LIMIT)
    return mark(
        env,
        "",
        f"{type(base).__name__} has neither an attribute stagger to set, nor counters of its copies' steps "
        f"({', '.join(COUNTERS)}) with a limit ({', '.join(LIMITS)}); where all episodes last equally long, it needs "
        "one of them",
    )


def mark(env: VectorEnv, how: str, why_not: str = "") -> VectorEnv:
    """Note how the copies are staggered, or why they are not, and return the environment."""
    base = env.unwrapped
    base.metadata = {**(base.metadata or {}), "staggered": how, "in_step_because": "" if how else why_not}
    return env


def is_staggered(env: VectorEnv) -> bool:
    """Return whether the first episodes of a vector environment's copies are cut off at different times."""
    return bool((env.unwrapped.metadata or {}).get("staggered"))


def in_step_because(env: VectorEnv) -> str:
    """Return why the copies cannot be staggered; empty where they are, or are not to be."""
    return (env.unwrapped.metadata or {}).get("in_step_because", "")


def set_clocks(env: VectorEnv, seeds: Sequence[int]) -> None:
    """Set the counters of steps ahead where that is how copies are staggered; they have just been reset."""
    if (env.unwrapped.metadata or {}).get("staggered") != "clock":
        return
    clock = _clock(env)
    assert clock is not None  # it was there when the environment was marked
    owner, name, limits = clock
    elapsed = limits - first_lengths(seeds, limits, env.num_envs)
    if isinstance(owner, SyncVectorEnv | AsyncVectorEnv):
        owner.set_attr(name, elapsed.tolist())
        return
    counter = getattr(owner, name)
    elapsed = elapsed.reshape(counter.shape)
    if isinstance(counter, torch.Tensor):
        counter += torch.from_numpy(elapsed).to(counter.device, counter.dtype)
    else:
        counter += elapsed.astype(counter.dtype)
    with contextlib.suppress(AttributeError):  # a property without a setter has been changed in place
        setattr(owner, name, counter)


def _clock(env: VectorEnv) -> tuple[Any, str, np.ndarray] | None:
    """Return who counts the copies' steps, in which attribute, and their limits (N,)."""
    base = env.unwrapped
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        limits = [getattr(spec, "max_episode_steps", None) for spec in base.get_attr("spec")]
        return (base, "_elapsed_steps", np.array(limits)) if all(map(_has_limit, limits)) else None
    simulator = getattr(base, "env", None)
    for owner in (base, simulator, getattr(simulator, "unwrapped", None)):
        for counter in COUNTERS:
            size = np.prod(getattr(getattr(owner, counter, None), "shape", (0,)))
            for limit in LIMITS:
                if size == env.num_envs and _has_limit(getattr(owner, limit, None)):
                    return owner, counter, np.full(env.num_envs, int(getattr(owner, limit)))
    return None


def _has_limit(value: Any) -> bool:
    """Return whether a value is a number of steps after which episodes are cut off."""
    try:
        return 1 <= int(value) < NO_LIMIT
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
