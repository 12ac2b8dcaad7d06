"""Objects that a config names by class path."""

import importlib
import sys
from typing import Any

from lightning_ppo.settings.moved import new_path
from lightning_ppo.support.errors import ConfigError


def load_class(path: Any, key: str, base: type) -> type:
    """Return the class `package.module.Class`.

    Args:
        path: The class path, or the class itself.
        key: Name of the setting, for error messages.
        base: What the class must derive from.

    Raises:
        ConfigError: If it cannot be imported or is no `base`.
    """
    if str(path).startswith("lightning."):
        ours = str(path).replace("lightning.pytorch.", "pytorch_lightning.", 1)
        raise ConfigError(f"{key}: {path}: classes of `lightning` and `pytorch_lightning` do not mix; name {ours}")
    cls, moved = path, new_path(str(path))
    if moved is not None:
        raise ConfigError(f"{key}: {path} has moved; name {moved}")
    if not isinstance(path, type):
        module_name, _, name = str(path).rpartition(".")
        try:
            cls = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{key}: cannot import {path!r}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{key}: {path} is no {base.__module__.split('.')[0]}.{base.__name__}")
    return cls


def as_path(entry: Any) -> Any:
    """Return the path of a class that can be imported by one, so that files can name it; anything else as it is."""
    if not isinstance(entry, type):
        return entry
    module, name = sys.modules.get(entry.__module__), entry.__name__
    return f"{entry.__module__}.{name}" if getattr(module, name, None) is entry else entry


def instantiate(entry: Any, key: str, base: type, *arguments: Any) -> Any:
    """Build a `base` from a class path, a class, or `{class_path: ..., init_args: {...}}`; or by calling a function.

    Args:
        entry: What the config says.
        key: Name of the setting, for error messages.
        base: What the class must derive from.
        arguments: Positional arguments, before `init_args`.

    Raises:
        ConfigError: If there is no such class, or it cannot be built.
    """
    path: Any = entry
    settings: dict[str, Any] = {}
    if isinstance(entry, dict):
        path, settings = entry.get("class_path"), entry.get("init_args") or {}
    make = path
    if isinstance(path, str | type) or path is None:
        make = load_class(path, key, base)
    elif not callable(path) or isinstance(path, base):
        raise ConfigError(f"{key}: expected a class path, a class, or class_path with init_args, got {entry!r}")
    try:
        made = make(*arguments, **settings)
    except Exception as error:
        raise ConfigError(f"{key}: {path} could not be built: {' '.join(str(error).split())}") from error
    if not isinstance(made, base):
        raise ConfigError(f"{key}: {path} makes a {type(made).__name__}, expected a {base.__name__}")
    return made
