"""Environments by registered id or import path, looked up without being made."""

import importlib
import re
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from lightning_ppo.support.env_maker import EnvMaker
from lightning_ppo.support.errors import EnvironmentFault, described, nearest
from lightning_ppo.support.packages import EXTRAS, install

JAX_FAMILIES = ("brax", "playground", "gymnax")
"""What stands before the colon in the ids of tasks that are written in JAX."""
PROVIDERS = {module: name for name, extra in EXTRAS.items() for module in extra.modules}
"""Extra of this package that provides a module."""


def find_spec(env_id: str) -> EnvSpec:
    """Return the spec of a registered id, or one of a class named by its import path.

    Raises:
        EnvironmentFault: If there is no such environment, or a package is missing.
    """
    module_name, separator, attribute = env_id.partition(":")
    if module_name in JAX_FAMILIES and separator:
        named = {"family": module_name, "task": attribute}
        return EnvSpec(
            id=f"{attribute}-v0", vector_entry_point="lightning_ppo.envs.jax_envs:JaxVectorEnv", kwargs=named
        )
    if separator:
        entry_point: Any = env_id.make if isinstance(env_id, EnvMaker) else _imported(env_id, module_name, attribute)
        name = re.sub(r"[^\w.-]", "_", attribute)
        if VectorEnv in getattr(entry_point, "__mro__", ()):
            return EnvSpec(id=f"{name}-v0", vector_entry_point=entry_point, kwargs={})
        if isinstance(entry_point, type) and not issubclass(entry_point, gymnasium.Env):
            raise EnvironmentFault(f"env.id: {env_id} is neither a gymnasium.Env nor a gymnasium.vector.VectorEnv")
        if callable(entry_point):
            return EnvSpec(id=f"{name}-v0", entry_point=entry_point, kwargs={})
        if attribute not in gymnasium.registry:
            raise EnvironmentFault(f"env.id: {module_name!r} neither defines nor registers {attribute!r}")
        env_id = attribute
    _register_optional(env_id)
    try:
        return gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        near = nearest(env_id, gymnasium.registry)
        reason = str(error).strip().splitlines()[0].split(" Did you mean")[0].rstrip(".")
        raise EnvironmentFault(f"env.id: no environment {env_id!r} ({reason}); did you mean {near}?") from None


def _imported(env_id: str, module_name: str, attribute: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        extra = _missing_extra(error)
        if extra is not None:
            raise _needs(env_id, *extra) from None
        raise EnvironmentFault(f"env.id: cannot import {module_name!r}: {described(error)}") from None
    return getattr(module, attribute, None)


def _register_optional(env_id: str) -> None:
    """Import the package that registers a namespace of ids, such as ale_py for `ALE/`."""
    if env_id.startswith("ALE/"):
        try:
            ale_py = importlib.import_module("ale_py")
            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
            gymnasium.register_envs(ale_py)
        except ImportError:
            raise _needs(env_id, "ale_py", PROVIDERS["ale_py"]) from None


def explain(env_id: str, error: BaseException) -> EnvironmentFault:
    """Return the fault of an environment that could not be built, with what to install if that is why."""
    extra = _missing_extra(error)
    if extra is not None:
        return _needs(env_id, *extra)
    return EnvironmentFault(f"env.id: {env_id} could not be built: {described(error)}")


def _needs(env_id: str, module: str, extra: str) -> EnvironmentFault:
    return EnvironmentFault(f"env.id: {env_id} needs the package {module}: {install(extra)}")


def _missing_extra(error: BaseException | None) -> tuple[str, str] | None:
    """Return the missing module and the extra that brings it, if that is what an error or its causes say."""
    while error is not None:
        for module, extra in PROVIDERS.items():
            absent = isinstance(error, ModuleNotFoundError) and module in (error.name or str(error))
            undeclared = isinstance(error, gymnasium.error.DependencyNotInstalled) and module in str(error).lower()
            if absent or undeclared:
                return module, extra
        error = error.__cause__ or error.__context__
    return None
