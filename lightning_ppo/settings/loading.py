"""Settings from YAML files and `key=value` overrides, and back to plain data."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_ppo.settings.mistakes import setting_mistake, value_at, whole_numbers, yaml_mistake
from lightning_ppo.settings.other_names import name_here
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.env_maker import EnvMaker
from lightning_ppo.support.errors import ConfigError, nearest

SCHEDULED = (
    *("clip_range", "clip_range_high", "value_clip_range", "kl_coefficient"),
    *("entropy_coefficient", "value_coefficient", "std_decay", "noise_color", "learning_rate", "gamma", "gae_lambda"),
    *("epochs", "kl_target", "max_grad_norm", "target_kl", "max_kl", "damping"),
)


OBJECTS = {
    *("kwargs", "wrappers", "distribution", "core", "encoder", "network"),
    *("class_path", "init_args", "scheduler", "groups"),
}
"""Fields that take Python objects from Python, as they are."""


PLAIN = (bool, int, float, str, bytes, type(None))
"""Types of single values that files hold."""

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
    names = {f.name for f in fields(cast(Any, section))}
    objects = {name: setting for name, setting in settings.items() if name in OBJECTS & names}
    if callable(settings.get("id")) or isinstance(settings.get("id"), EnvMaker):
        objects["id"] = settings["id"]
    numbers = {name: _plain_number(setting) for name, setting in settings.items() if name not in objects}
    try:
        given = _literal(numbers)
    except OmegaConfBaseException as error:
        raise _not_plain(error, f"{key}.", numbers) from None
    made = _to_object(_merge(OmegaConf.structured(section), given, section, f"{key}."), section, f"{key}.")
    if not isinstance(objects.get("kwargs", {}), Mapping):
        raise ConfigError(f"{key}.kwargs: expected a mapping, got {objects['kwargs']!r}")
    if not isinstance(objects.get("wrappers", []), list | tuple):
        raise ConfigError(f"{key}.wrappers: expected a list, got {objects['wrappers']!r}")
    return replace(made, **{name: copied(setting) for name, setting in objects.items()})


def section_with(kind: type[T], given: T | Mapping[str, Any] | None, single: dict[str, Any], key: str) -> T:
    """Return a section of settings in which single ones that are not None replace those of the section."""
    single = {name: value for name, value in single.items() if value is not None}
    if not single:
        return as_section(kind, given, key)
    base = given if isinstance(given, Mapping) else vars(given) if given is not None else {}
    return as_section(kind, {**base, **single}, key)


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
    return _to_object(merged, Config, "")


def one_by_one(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a nested mapping for each entry of one whose keys may be dotted."""
    keys = [(str(key).split("."), value) for key, value in settings.items()]
    return [reduce(lambda inner, name: {name: inner}, reversed(names), value) for names, value in keys]


def _read_override(override: str | Mapping[str, Any]) -> DictConfig:
    if isinstance(override, Mapping):
        try:
            return _literal(override)
        except OmegaConfBaseException as error:
            raise _not_plain(error, "", override) from None
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: expected key=value or the path of a .yaml file")
    if key.startswith("-"):
        raise ConfigError(no_option(key, value))
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:
        raise ConfigError(f"{key}: cannot read the value {value}: {yaml_mistake(error)}") from None


def no_option(option: str, value: str = "...") -> str:
    """Return the message about an option with dashes, which are no settings here."""
    name = option.lstrip("-").replace("-", "_")
    here = name_here(name) or f"{nearest(name, valid_keys(Config, ''))}={value}"
    return f"{option}: settings are given as name=value, without dashes; here it is {here}"


def _not_plain(error: OmegaConfBaseException, prefix: str, given: Any) -> ConfigError:
    found = value_at(given, str(error.full_key))
    return ConfigError(f"{prefix}{error.full_key}: expected plain data, got {type(found).__name__}")


def marked(settings: Any) -> Any:
    """Return settings as plain data for files, in which texts such as `<DataFrame from Python>` stand for objects."""

    def mark(value: Any) -> Any:
        if isinstance(value, Schedule):
            return value.to_container()
        if is_dataclass(value) and type(value).__module__.startswith("lightning_ppo.settings."):
            return {f.name: mark(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, Mapping):
            return {str(key): mark(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [mark(child) for child in value]
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            return value.item()
        if isinstance(value, EnvMaker):
            return str(value)
        return value if type(value) in PLAIN else f"<{type(value).__name__} from Python>"

    return mark(settings)


def to_yaml(config: Config) -> str:
    """Return resolved settings as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(marked(config)))


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
        raise ConfigError(yaml_mistake(error, str(path))) from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of settings at the top level")
    return content


def _merge(base: Any, update: Any, section: type, prefix: str) -> Any:
    given = cast(dict[str, Any], OmegaConf.to_container(update, resolve=False))
    unknown = _first_unknown_key(given, section, "")
    if unknown is not None:
        raise ConfigError(f"{prefix}{unknown}: {_meant(unknown, section, prefix)}")
    missing = next((key for key, value in flat(given).items() if isinstance(value, str) and value == "???"), None)
    if missing is not None:
        raise ConfigError(f"{prefix}{missing}: ??? stands for a value that is missing; give one")
    for key, number in whole_numbers(section, given).items():
        OmegaConf.update(update, key, number, merge=False)
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
        raise ConfigError(f"{prefix}{setting_mistake(error, section, given)}") from None


def _meant(unknown: str, section: type, prefix: str) -> str:
    """Return what somebody meant who wrote a name that is none here."""
    keys = valid_keys(section, "")
    leaf = unknown.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == leaf]
    here = None if same else name_here(leaf)
    if here is not None:
        return f"here it is {here}"
    near = same[0] if len(same) == 1 else nearest(unknown, [*keys, *(f.name for f in fields(section))])
    return f"unknown setting; did you mean {prefix}{near}?"


def _to_object(merged: Any, section: type, prefix: str) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        given = OmegaConf.to_container(merged, resolve=False)
        raise ConfigError(f"{prefix}{setting_mistake(error, section, given)}") from None


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
