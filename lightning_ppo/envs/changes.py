"""What is changed in environments between two rollouts: attributes that are set, methods that are called."""

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorWrapper

from lightning_ppo.envs.simulators import TensorVectorEnv
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.support.errors import ConfigError, one_line

REFUSED = {
    "set_attr": ("action_space", "observation_space", "single_action_space", "single_observation_space", "num_envs"),
    "call": ("reset", "step", "close"),
}
"""What nobody may change while it is trained in: what the networks and the collector rely on."""

_ARRAY = "lightning_ppo.array"
"""Stands in checkpoints for NumPy's arrays, which they hold as tensors."""


class Change(NamedTuple):
    """One thing to be done in every copy of an environment."""

    how: str
    """`set_attr` or `call`."""
    name: str
    """Of the attribute or method."""
    args: tuple[Any, ...]
    """The value, or the arguments."""
    kwargs: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What a later change of the same kind and name replaces."""
        return self.how, self.name

    def __str__(self) -> str:
        """Return it as messages name it."""
        return f"datamodule.{self.how}({self.name!r})"


def make_change(how: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Change:
    """Return a change whose values nobody else changes any more.

    Raises:
        ConfigError: If nobody may make it.
    """
    if not isinstance(name, str) or not name.isidentifier() or name in REFUSED[how]:
        reason = "expected the name of an attribute" if how == "set_attr" else "expected the name of a method"
        raise ConfigError(f"datamodule.{how}({name!r}): {reason} other than {', '.join(REFUSED[how])}")
    return Change(how, name, tuple(_own(value) for value in args), {key: _own(value) for key, value in kwargs.items()})


def _own(value: Any) -> Any:
    """Return a copy of a value, or itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # of the user's code, which need not support copies
        return value


class Outcome(NamedTuple):
    """What came of a change in one copy."""

    status: str
    """`made`, `missing` where nothing has the name, or `failed`."""
    reason: str = ""


def layers_within(env: Any) -> list[Any]:
    """Return an environment with all that it wraps, the outermost first; a simulator of tensors counts as wrapped."""
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper | VectorWrapper | TensorVectorEnv):
        found.append(found[-1].env)
    return found


def change_innermost(layers: Sequence[Any], change: Change) -> Outcome:
    """Make a change in the innermost of some layers that has what it names; layers of this package have nothing.

    Args:
        layers: Of one copy, or of a vector environment, the outermost first.
        change: What to do.
    """
    for layer in reversed(layers):
        if not _is_ours(layer) and _has(layer, change.name):
            return _made_in(layer, change)
    names = [name for name in dir(layers[-1]) if not name.startswith("_")]
    near = difflib.get_close_matches(change.name, names, n=1)
    what = "attribute" if change.how == "set_attr" else "method"
    hint = f"did you mean {near[0]!r}?" if near else f"give its class one{' in __init__' * (what == 'attribute')}"
    return Outcome("missing", f"{type(layers[-1]).__name__} has no {what} {change.name!r}; {hint}")


def _is_ours(layer: Any) -> bool:
    """Return whether a layer is one that this package puts around environments, or an adapter."""
    module = type(layer).__module__
    return module.startswith("lightning_ppo.") and module != "lightning_ppo.envs.torch_envs"


def _has(layer: Any, name: str) -> bool:
    try:
        return hasattr(layer, name)
    except Exception:  # of a user's property; making the change then reports it
        return True


def _made_in(layer: Any, change: Change) -> Outcome:
    args, kwargs = _own(change.args), _own(change.kwargs)
    try:
        if change.how == "set_attr":
            setattr(layer, change.name, *args)
            return Outcome("made")
        method = getattr(layer, change.name)
        if not callable(method):
            return Outcome("failed", f"{change.name} of {type(layer).__name__} is no method; set_attr sets it")
        method(*args, **kwargs)
        return Outcome("made")
    except Exception as error:
        where = f"{change.name} of {type(layer).__name__}"
        return Outcome("failed", f"{where} raised {type(error).__name__}: {one_line(error)}")


# ---------------------------------------------------------------- in checkpoints


def to_plain(changes: Iterable[Change]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return changes as plain data, and a sentence on each that a checkpoint cannot hold."""
    found, left_out = [], []
    for change in changes:
        values = {"args": [_plain(value) for value in change.args], "kwargs": _plain(change.kwargs)}
        saved, missing = plain(values)
        if missing:
            left_out.append(f"{change}: a checkpoint cannot hold a {next(iter(missing.values()))}")
        else:
            found.append({"how": change.how, "name": change.name, **saved})
    return found, left_out


def from_plain(saved: Iterable[Mapping[str, Any]]) -> list[Change]:
    """Return the changes that `to_plain` was given."""
    return [
        Change(entry["how"], entry["name"], tuple(map(_restored, entry["args"])), _restored(entry["kwargs"]))
        for entry in saved
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    return _nested(_plain, value)


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and _ARRAY in value:
        return value[_ARRAY].numpy().copy()
    return _nested(_restored, value)


def _nested(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(child) for key, child in value.items()}
    if type(value) in (list, tuple):
        return type(value)(function(child) for child in value)
    return value
