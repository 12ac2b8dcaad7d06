"""Hyperparameters as plain data, the only thing that checkpoints hold, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.env_maker import EnvMaker
from lightning_ppo.support.spaces import is_spec, space_from_spec, space_to_spec

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def plain(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return settings as plain data and tensors, and what was left out because it is neither.

    Args:
        values: Settings by name; spaces, settings sections and schedules may be among them.

    Returns:
        The plain settings, and the types of those that were left out by their dotted name.
    """
    left_out: dict[str, str] = {}
    return _plain_dict(values, "", left_out), left_out


def _plain_dict(values: Mapping[Any, Any], path: str, left_out: dict[str, str]) -> dict[Any, Any]:
    found = {}
    for name, value in values.items():
        here = f"{path}.{name}" if path else str(name)
        converted = _plain(value, here, left_out)
        if converted is not _NOTHING:
            found[name] = converted
    return found


class _Nothing:
    """Stands for a value that has no plain form."""


_NOTHING = _Nothing()


def _plain(value: Any, path: str, left_out: dict[str, str]) -> Any:
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, EnvMaker):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, gymnasium.Space):
        return space_to_spec(value)
    if isinstance(value, Schedule):
        return value.to_container()
    if is_dataclass(value) and type(value).__module__.startswith("lightning_ppo.settings."):
        return _plain_dict({f.name: getattr(value, f.name) for f in fields(value)}, path, left_out)
    if isinstance(value, Mapping):
        return _plain_dict(value, path, left_out)
    if isinstance(value, list | tuple):
        found: dict[str, str] = {}
        items = [_plain(item, f"{path}.{index}", found) for index, item in enumerate(value)]
        if not found:
            return tuple(items) if isinstance(value, tuple) else items
        left_out |= found  # a list with a gap would be another list
        return _NOTHING
    left_out[path] = type(value).__name__
    return _NOTHING


def spaces_among(values: Mapping[str, Any]) -> dict[str, gymnasium.Space]:
    """Return the spaces that were made plain data among settings, as spaces."""
    return {name: space_from_spec(value) for name, value in values.items() if is_spec(value)}
