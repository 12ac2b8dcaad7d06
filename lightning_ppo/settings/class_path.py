"""Classes that settings name: by class path, or by a short name of a built-in class."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_ppo.settings.moved import new_path
from lightning_ppo.support.errors import ConfigError, UnsupportedSpaceError, nearest, one_line


class Registry:
    """The classes that one setting may name.

    A name stands for a class path, and everything else that names a class is one; so what comes along and what is a
    user's own are built alike. It iterates over its names.

    Args:
        key: The setting, for error messages.
        base: Class path of the base of every class.
        names: Short names and their class paths.
    """

    def __init__(self, key: str, base: str, names: Mapping[str, str]) -> None:
        self.key, self.names = key, dict(names)
        self._base = base

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, entry: object) -> bool:
        return isinstance(entry, str) and entry in self.names

    @property
    def base(self) -> type:
        """The base of every class."""
        return load_class(self._base, self.key, object)

    def check(self, entry: Any) -> None:
        """Raise ConfigError for a word that is none of the names, without importing anything."""
        path = class_path_of(entry)
        if not isinstance(path, str) or "." in path or path in self.names:
            return
        if not self.names:
            raise ConfigError(f"{self.key}: expected a class path such as package.module.Class, got {path!r}")
        raise ConfigError(
            f"{self.key}: expected a class path or one of {', '.join(self.names)}, got {path!r}; "
            f"did you mean {nearest(path, self.names)}?"
        )

    def load(self, entry: Any) -> Any:
        """Return the class that an entry names.

        Raises:
            ConfigError: If there is none, or it is none of this kind.
        """
        return load_class(self._path(entry), self.key, self.base)

    def instantiate(self, entry: Any, *arguments: Any, **settings: Any) -> Any:
        """Build what an entry names; see `instantiate`."""
        path, given = self._path(entry), entry.get("init_args") if isinstance(entry, Mapping) else None
        made = {"class_path": path, "init_args": {**settings, **(given or {})}}
        return instantiate(made, self.key, self.base, *arguments)

    def _path(self, entry: Any) -> Any:
        self.check(entry)
        path = class_path_of(entry)
        return self.names[path] if path in self else path


def class_path_of(entry: Any) -> Any:
    """Return the name, class path or class of an entry, which may be a mapping of class_path and init_args."""
    return entry.get("class_path") if isinstance(entry, Mapping) else entry


def load_class(path: Any, key: str, base: type) -> type:
    """Return the class `package.module.Class`.

    Args:
        path: The class path, or the class itself.
        key: Name of the setting, for error messages.
        base: The required base class.

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
    """Return an entry with the path of a class in place of the class, so that files can name it, if it has one."""
    if isinstance(entry, dict) and isinstance(entry.get("class_path"), type):
        return {**entry, "class_path": as_path(entry["class_path"])}
    if not isinstance(entry, type):
        return entry
    module, name = sys.modules.get(entry.__module__), entry.__name__
    return f"{entry.__module__}.{name}" if getattr(module, name, None) is entry else entry


def instantiate(entry: Any, key: str, base: type, *arguments: Any) -> Any:
    """Build a `base` from a class path, a class, or `{class_path: ..., init_args: {...}}`; or by calling a function.

    Args:
        entry: The value in the config.
        key: Name of the setting, for error messages.
        base: The required base class.
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
        raise ConfigError(f"{key}: expected a class path, a class, or class_path with init_args, got {path!r}")
    try:
        made = make(*arguments, **settings)
    except UnsupportedSpaceError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {path} could not be built: {one_line(error)}") from error
    if not isinstance(made, base):
        raise ConfigError(f"{key}: {path} makes a {type(made).__name__}, expected a {base.__name__}")
    return made
