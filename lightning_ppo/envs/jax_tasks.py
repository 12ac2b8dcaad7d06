"""Tasks of simulators that are written in JAX, as pure functions of one copy: Brax, MuJoCo Playground, gymnax."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from lightning_ppo.support.errors import EnvironmentFault, nearest

LIMIT = 1000
"""Steps of an episode in Brax, whose environments leave that to who trains on them."""
NEVER = 2**31 - 1
"""A time limit that is not reached, for tasks whose own one would count as a termination."""


@dataclass(frozen=True)
class JaxTask:
    """One copy of a task, as functions that can be traced.

    Attributes:
        observation_space: Of one copy.
        action_space: Of one copy.
        reset: Takes a random key; returns observation and state.
        step: Takes a random key, a state and an action; returns observation, state, reward, and whether the episode
            ended by itself.
        max_episode_steps: Steps after which an episode is cut off; None never does.
    """

    observation_space: Space
    action_space: Space
    reset: Callable[[Any], tuple[Any, Any]]
    step: Callable[[Any, Any, Any], tuple[Any, Any, Any, Any]]
    max_episode_steps: int | None = None


def make_task(family: str, name: str, **kwargs: Any) -> JaxTask:
    """Return a task by the name that its project gives it.

    Args:
        family: One of FAMILIES.
        name: Of the task.
        **kwargs: Of Brax's constructor, of Playground's configuration, or of gymnax's parameters.

    Raises:
        EnvironmentFault: If there is no such task.
        ModuleNotFoundError: If the project is not installed.
    """
    return FAMILIES[family](name, **kwargs)


def _check(family: str, name: str, names: Iterable[str]) -> None:
    known = sorted(names)
    if name not in known:
        raise EnvironmentFault(f"env.id: {family} has no {name!r}; did you mean {family}:{nearest(name, known)}?")


def _brax(name: str, **kwargs: Any) -> JaxTask:
    from brax import envs

    try:
        env = envs.get_environment(name, **kwargs)
    except KeyError:
        raise EnvironmentFault(f"env.id: brax has no {name!r}; its environments are those of brax.envs") from None
    return _of_states(env, LIMIT)


def _playground(name: str, **overrides: Any) -> JaxTask:
    from mujoco_playground import registry

    _check("playground", name, registry.ALL_ENVS)
    settings = registry.get_default_config(name)
    return _of_states(registry.load(name, config_overrides=overrides or None), int(settings.episode_length))


def _of_states(env: Any, limit: int) -> JaxTask:
    """Return a task of an environment whose functions return everything in one state, as Brax's do."""

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any, Any, Any]:
        after = env.step(state, action)
        return after.obs, after, after.reward, after.done > 0.5

    def reset(key: Any) -> tuple[Any, Any]:
        state = env.reset(key)
        return state.obs, state

    actions = spaces.Box(-1.0, 1.0, (int(env.action_size),), np.float32)
    return JaxTask(_unbounded(env.observation_size), actions, reset, step, limit)


def _unbounded(size: Any) -> Space:
    """Return the space of observations of one size, or of several by name."""
    if isinstance(size, Mapping):
        return spaces.Dict({name: _unbounded(part) for name, part in size.items()})
    return spaces.Box(-np.inf, np.inf, (size,) if isinstance(size, int) else tuple(size), np.float32)


def _gymnax(name: str, **parameters: Any) -> JaxTask:
    import gymnax

    _check("gymnax", name, gymnax.registered_envs)
    env, chosen = gymnax.make(name)
    chosen = chosen.replace(**parameters)
    limit = getattr(chosen, "max_steps_in_episode", None)
    if limit is not None:
        chosen = chosen.replace(max_steps_in_episode=NEVER)

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any, Any, Any]:
        observation, state, reward, done, _ = env.step_env(key, state, action, chosen)
        return observation, state, reward, done

    seen, taken = (_gymnasium_space(space(chosen)) for space in (env.observation_space, env.action_space))
    return JaxTask(seen, taken, lambda key: env.reset_env(key, chosen), step, None if limit is None else int(limit))


def _gymnasium_space(space: Any) -> Space:
    """Return one of gymnax's spaces as Gymnasium's."""
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    if isinstance(space.__dict__.get("spaces"), Mapping):
        return spaces.Dict({name: _gymnasium_space(part) for name, part in space.spaces.items()})
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high))
    return spaces.Box(low, high, tuple(space.shape), np.float32)


FAMILIES: dict[str, Callable[..., JaxTask]] = {"brax": _brax, "playground": _playground, "gymnax": _gymnax}
"""Makers of tasks, by what stands before the colon in `env.id`."""
