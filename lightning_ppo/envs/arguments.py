"""Separate the arguments of an environment's constructor from those of Gymnasium's functions that call it."""

import copy
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv

from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.notices import warn_once

_log = logging.getLogger(__name__)

LIMIT = "max_episode_steps"


def make(
    spec: EnvSpec, kwargs: dict[str, Any], max_episode_steps: int | None, render_mode: str | None = None
) -> gymnasium.Env:
    """Return a copy whose constructor gets all of `kwargs`, whatever Gymnasium calls its own arguments.

    Args:
        spec: Of the environment.
        kwargs: Of its constructor.
        max_episode_steps: Gymnasium's time limit; None takes the registered one.
        render_mode: Has Gymnasium see to it that the environment renders so.
    """
    settings = {} if render_mode is None else {"render_mode": render_mode}
    own = {k: v for k, v in kwargs.items() if k in (*_parameters(gymnasium.make), "render_mode") and k not in settings}
    if own:
        spec = copy.deepcopy(spec)
        spec.entry_point = partial(_creator(spec.entry_point), **own)
        spec.kwargs = {k: v for k, v in spec.kwargs.items() if k not in own}
    settings |= {k: v for k, v in kwargs.items() if k not in own and k not in settings}
    return gymnasium.make(spec, max_episode_steps=max_episode_steps, disable_env_checker=True, **settings)


def make_vec(spec: EnvSpec, num_envs: int, kwargs: dict[str, Any]) -> VectorEnv:
    """Return a vector environment of its own kind whose constructor gets all of `kwargs`."""
    if "num_envs" in kwargs:
        raise ConfigError("env.kwargs.num_envs: set env.num_envs")
    own = {k: v for k, v in kwargs.items() if k in _parameters(gymnasium.make_vec)}
    if own:
        spec = copy.deepcopy(spec)
        spec.vector_entry_point = partial(_creator(spec.vector_entry_point), **own)
    others = {k: v for k, v in kwargs.items() if k not in own}
    return gymnasium.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point", **others)


def _parameters(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def _creator(entry_point: Any) -> Callable[..., Any]:
    return entry_point if callable(entry_point) else load_env_creator(entry_point)


def check_time_limit(env_id: str, entry_point: Any, kwargs: dict[str, Any]) -> None:
    """Refuse, or warn of, Gymnasium's time limit among the arguments of a constructor.

    Raises:
        ConfigError: If the constructor does not take it.
    """
    if LIMIT not in kwargs:
        return
    accepts = _accepts(_creator(entry_point), LIMIT)
    if accepts is inspect.Parameter.empty:
        raise ConfigError(
            f"env.kwargs.{LIMIT}: the constructor of {env_id} takes no such argument; the time limit of Gymnasium is "
            f"env.{LIMIT}"
        )
    if accepts is inspect.Parameter.VAR_KEYWORD:
        message = (
            f"env.kwargs.{LIMIT} goes to the constructor of {env_id}, which takes any argument; the time limit of "
            f"Gymnasium is env.{LIMIT}"
        )
        warn_once(_log, message, message)


def with_time_limit(env_id: str, entry_point: Any, kwargs: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Return arguments of a vector environment's constructor with the time limit that was set.

    Raises:
        ConfigError: If it takes none, or another one is among its arguments.
    """
    if limit is None:
        return kwargs
    if _accepts(_creator(entry_point), LIMIT) is inspect.Parameter.empty:
        raise ConfigError(f"env.{LIMIT}: the vector environment {env_id} takes no time limit; set env.backend=sync")
    return with_own_limit(kwargs, limit)


def with_own_limit(kwargs: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return arguments with a time limit.

    Raises:
        ConfigError: If there is another one.
    """
    if kwargs.get(LIMIT, limit) != limit:
        raise ConfigError(f"env.{LIMIT}={limit}: env.kwargs.{LIMIT} is {kwargs[LIMIT]}; leave one of them out")
    return {**kwargs, LIMIT: limit}


def _accepts(creator: Callable[..., Any], name: str) -> Any:
    """Return the kind of the parameter that takes an argument by name, empty if there is none."""
    try:
        parameters = inspect.signature(creator).parameters
    except (TypeError, ValueError):  # not written in Python
        return inspect.Parameter.VAR_KEYWORD
    if name in parameters:
        return parameters[name].kind
    kinds = [parameter.kind for parameter in parameters.values()]
    return inspect.Parameter.VAR_KEYWORD if inspect.Parameter.VAR_KEYWORD in kinds else inspect.Parameter.empty
