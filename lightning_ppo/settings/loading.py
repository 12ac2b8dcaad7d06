"""Settings from YAML files and `key=value` overrides, and back to plain data."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import ConfigError, nearest

SCHEDULED = (
    *("clip_range", "clip_range_high", "value_clip_range", "kl_coefficient"),
    *("entropy_coefficient", "value_coefficient", "std_decay", "learning_rate"),
)


OBJECTS = (
    *("kwargs", "wrappers", "distribution", "core", "encoder", "network"),
    *("class_path", "init_args", "scheduler"),
)
"""Fields that take Python objects from Python, as they are."""


T = TypeVar("T")
Overrides = Sequence[str | Mapping[str, Any]]
"""`key=value` texts, or nested mappings of settings."""


def as_section(section: type[T], value: T | Mapping[str, Any] | None, key: str) -> T:
    """Return a settings dataclass from itself, a mapping of its fields, or None for the defaults.

    Raises:
        ConfigError: If a field is unknown or has the wrong type or value.
    """
    if value is None:
        return section()
    if isinstance(value, section):
        return value
    settings = value if isinstance(value, Mapping) else to_container(value)
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{key}: expected a mapping of settings, got {value!r}")
    objects = {f.name: settings[f.name] for f in fields(cast(Any, section)) if f.name in OBJECTS and f.name in settings}
    numbers = {name: _plain_number(setting) for name, setting in settings.items() if name not in objects}
    try:
        given = _literal(numbers)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}.{error.full_key}: expected plain data: {_first_line(error)}") from None
    made = _to_object(_merge(OmegaConf.structured(section), given, section, f"{key}."))
    if not isinstance(objects.get("kwargs", {}), Mapping):
        raise ConfigError(f"{key}.kwargs: expected a mapping, got {objects['kwargs']!r}")
    if not isinstance(objects.get("wrappers", []), list | tuple):
        raise ConfigError(f"{key}.wrappers: expected a list, got {objects['wrappers']!r}")
    return replace(made, **{name: copied(setting) for name, setting in objects.items()})


def _plain_number(value: Any) -> Any:
    """Return a number or list of numbers in place of NumPy's and torch's."""
    return value.tolist() if hasattr(value, "tolist") else value


def copied(value: Any) -> Any:
    """Return new dicts and lists with the same other values."""
    if isinstance(value, Container):
        return OmegaConf.to_container(value)
    if isinstance(value, dict | Mapping):
        return {name: copied(child) for name, child in value.items()}
    return [copied(child) for child in value] if type(value) is list else value


def _literal(settings: Mapping[str, Any]) -> DictConfig:
    """Return settings for merging, in which text stays as it is, even if it looks like an interpolation."""

    def escape(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        if isinstance(value, dict):
            return {name: escape(child) for name, child in value.items()}
        return [escape(child) for child in value] if isinstance(value, list) else value

    return OmegaConf.create(escape(to_container(settings)))


def to_container(value: Any) -> Any:
    """Return settings (dataclasses, schedules, mappings, sequences, scalars) as plain dicts, lists and scalars."""
    if isinstance(value, Schedule):
        return value.to_container()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_container(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_container(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_container(v) for v in value]
    return value


def flat(
    tree: Mapping[str, Any], prefix: str = "", whole: Callable[[Mapping[str, Any]], bool] = lambda _: False
) -> dict[str, Any]:
    """Return nested settings as one level of dotted keys; mappings that are to stay `whole` are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and not whole(value)
        found |= flat(value, f"{prefix}{key}.", whole) if nested else {f"{prefix}{key}": value}
    return found


def load(files: Sequence[str | Path] = (), overrides: Overrides = ()) -> Config:
    """Merge the defaults, YAML files in order, and overrides, `key=value` or nested mappings; later ones win.

    Raises:
        ConfigError: Naming the key, what is wrong, and the nearest valid key.
    """
    return _load_over(OmegaConf.structured(Config), files, overrides)


def _load_over(merged: Any, files: Sequence[str | Path], overrides: Overrides) -> Config:
    for file in files:
        merged = _merge(merged, _read_yaml(Path(file)), Config, "")
    for override in overrides:
        merged = _merge(merged, _read_override(override), Config, "")
    return _to_object(merged)


def one_by_one(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a nested mapping for each entry of one whose keys may be dotted."""
    keys = [(str(key).split("."), value) for key, value in settings.items()]
    return [reduce(lambda inner, name: {name: inner}, reversed(names), value) for names, value in keys]


def _read_override(override: str | Mapping[str, Any]) -> DictConfig:
    if isinstance(override, Mapping):
        try:
            return _literal(override)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key}: expected plain data: {_first_line(error)}") from None
    key, separator, _ = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: expected key=value or the path of a .yaml file")
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:
        raise ConfigError(f"{key}: cannot read the value as YAML: {_first_line(error)}") from None


def to_yaml(config: Config) -> str:
    """Return resolved settings as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_container(config)))


def peek(files: Sequence[str | Path], overrides: Overrides, key: str) -> Any:
    """Return the value of one top-level setting before anything else is read or checked."""
    value = None
    for source in (*(_read_yaml(Path(file)) for file in files), *(_read_override(o) for o in overrides)):
        value = source.get(key, value)
    return value


def given_keys(files: Sequence[str | Path], overrides: Overrides) -> set[str]:
    """Return the dotted names of the settings that files and overrides set."""
    sources = [*(_read_yaml(Path(file)) for file in files), *(_read_override(override) for override in overrides)]
    return {key for source in sources for key in flat(cast(dict, OmegaConf.to_container(source)))}


def load_over(settings: Mapping[str, Any], files: Sequence[str | Path] = (), overrides: Overrides = ()) -> Config:
    """Return settings saved by `to_container`, with files and overrides merged over them."""
    merged = _merge(OmegaConf.structured(Config), _literal(settings), Config, "")
    return _load_over(merged, files, overrides)


def _read_yaml(path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        present = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; did you mean {nearest(str(path), present)}?" if present else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except Exception as error:
        raise ConfigError(f"{path}: not a readable YAML file: {_first_line(error)}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of settings at the top level")
    return content


def _merge(base: Any, update: Any, section: type, prefix: str) -> Any:
    unknown = _first_unknown_key(OmegaConf.to_container(update, resolve=False), section, "")
    if unknown is not None:
        near = nearest(unknown, [*valid_keys(section, ""), *(f.name for f in fields(section))])
        raise ConfigError(f"{prefix}{unknown}: unknown setting; did you mean {prefix}{near}?")
    for key in valid_keys(section, ""):
        if key.rpartition(".")[2] not in SCHEDULED:
            continue
        new = OmegaConf.select(update, key, throw_on_resolution_failure=False)
        if isinstance(new, DictConfig) and "kind" in new and isinstance(OmegaConf.select(base, key), DictConfig):
            # a schedule of its own kind replaces the former one instead of mixing their fields
            base = OmegaConf.merge(base)
            OmegaConf.update(base, key, None, merge=False)
    try:
        return OmegaConf.merge(base, update)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{prefix}{error.full_key}: {_first_line(error)}") from None


def _to_object(merged: Any) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"{error.full_key}: {_first_line(error)}") from None


def _section_type(section: type, name: str) -> type | None:
    for f in fields(section):
        if f.name == name and f.default_factory is not MISSING and is_dataclass(f.default_factory):
            return f.default_factory
    return None


def valid_keys(section: type, prefix: str) -> list[str]:
    """Return the dotted names of all settings of a section."""
    keys = []
    for f in fields(section):
        child = _section_type(section, f.name)
        keys += valid_keys(child, f"{prefix}{f.name}.") if child else [f"{prefix}{f.name}"]
    return keys


def _first_unknown_key(content: Any, section: type, prefix: str) -> str | None:
    names = {f.name for f in fields(section)}
    for name, value in content.items():
        if name not in names:
            return f"{prefix}{name}"
        child = _section_type(section, name)
        if child and not isinstance(value, dict):
            raise ConfigError(f"{prefix}{name}: expected a mapping of settings, got {value!r}")
        if child:
            unknown = _first_unknown_key(value, child, f"{prefix}{name}.")
            if unknown:
                return unknown
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
