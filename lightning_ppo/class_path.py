"""Objects that a config names by class path."""

import importlib
from typing import Any

from lightning_ppo.errors import ConfigError


def load_class(path: Any, key: str, base: type) -> type:
    """Return the class `package.module.Class`.

    Args:
        path: The class path.
        key: Name of the setting, for error messages.
        base: What the class must derive from.

    Raises:
        ConfigError: If it cannot be imported or is no `base`.
    """
    if str(path).startswith("lightning."):
        ours = str(path).replace("lightning.pytorch.", "pytorch_lightning.", 1)
        raise ConfigError(f"{key}: {path}: classes of `lightning` and `pytorch_lightning` do not mix; name {ours}")
    module_name, _, name = str(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: cannot import {path!r}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{key}: {path} is no {base.__module__.split('.')[0]}.{base.__name__}")
    return cls


def instantiate(entry: Any, key: str, base: type, *arguments: Any) -> Any:
    """Build a `base` from a class path, or from `{class_path: ..., init_args: {...}}`.

    Args:
        entry: What the config says.
        key: Name of the setting, for error messages.
        base: What the class must derive from.
        arguments: Positional arguments, before `init_args`.

    Raises:
        ConfigError: If there is no such class, or it cannot be built.
    """
    if not isinstance(entry, str | dict):
        raise ConfigError(f"{key}: expected a class path, or class_path with init_args, got {entry!r}")
    path, settings = (entry, {}) if isinstance(entry, str) else (entry.get("class_path"), entry.get("init_args") or {})
    cls = load_class(path, key, base)
    try:
        return cls(*arguments, **settings)
    except Exception as error:
        raise ConfigError(f"{key}: {path} could not be built: {' '.join(str(error).split())}") from error
