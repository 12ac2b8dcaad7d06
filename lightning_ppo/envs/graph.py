"""Graphs of Python objects as plain data: who refers to whom is kept, cycles included.

The content of each named value is a chunk: `[root, nodes]`, terms of JSON in which `["r", n]` refers to a node of the
chunk and `["x", chunk, n]` to one of another chunk. Arrays stay arrays. `graph_writer` and `graph_reader` follow
references with a queue, so no depth is too deep, and nothing that a chunk names is ever called.
"""

import logging
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from lightning_ppo.envs.native import is_renderer

_CONSTANT = (
    *(gymnasium.Space, EnvSpec, np.dtype, torch.dtype, torch.device, logging.Logger, re.Pattern),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
)

DICTS: dict[str, Any] = {cls.__name__: cls for cls in (dict, OrderedDict, defaultdict, Counter)}
"""Kinds of dicts."""

FACTORIES: dict[str, Any] = {factory.__name__: factory for factory in (list, dict, set, int, float, deque)}
"""What a defaultdict may make of missing entries; functions besides these are constant."""


@dataclass
class Chunk:
    """The content of one named value."""

    nodes: list[Any] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    """Chunks that it refers to."""
    text: str = ""

    def same_as(self, other: "Chunk") -> bool:
        """Return whether both hold the same."""
        return (
            self.text == other.text
            and len(self.arrays) == len(other.arrays)
            and all(map(_same_array, self.arrays, other.arrays))
        )


def _same_array(one: Any, other: Any) -> bool:
    return one is other or (one.dtype == other.dtype and np.array_equal(as_bytes(one), as_bytes(other)))


def as_bytes(array: Any) -> np.ndarray:
    """Return what an array or a tensor holds as a flat array of bytes."""
    if isinstance(array, Tensor):
        return array.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    return array.ravel(order="K" if array.flags.forc else "C").view(np.uint8)


def linked(keys: Iterable[str], chunks: Mapping[str, Chunk]) -> set[str]:
    """Return `keys` with all chunks that they refer to, or that refer to them, over any number of steps."""
    neighbours: dict[str, set[str]] = defaultdict(set)
    for key, chunk in chunks.items():
        for other in chunk.links:
            neighbours[key].add(other)
            neighbours[other].add(key)
    found, left = set(keys), list(keys)
    while left:
        new = neighbours[left.pop()] - found
        found |= new
        left += new
    return found


def is_constant(value: Any) -> bool:
    """Return whether a value is taken from the environment that is restored, not from the one that was saved."""
    return isinstance(value, _CONSTANT) or is_renderer(value)


def signature(value: Any) -> str:
    """Return what a constant is recognised by: the name of a function or class, of others that of their class."""
    return path_of(value if isinstance(value, type | types.FunctionType) else type(value))


def path_of(named: Any) -> str:
    """Return the path of a class or function."""
    return f"{named.__module__}:{named.__qualname__}"


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """Set an attribute past what the class does about it."""
    if _is_slot(owner, name):
        object.__setattr__(owner, name, value)
    else:
        vars(owner)[name] = value


def delete_attribute(owner: Any, name: str) -> None:
    """Delete an attribute past what the class does about it."""
    if _is_slot(owner, name):
        object.__delattr__(owner, name)
    else:
        del vars(owner)[name]


def _is_slot(owner: Any, name: str) -> bool:
    return isinstance(getattr(type(owner), name, None), types.MemberDescriptorType)


def plain_attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object of a plain class: one that keeps nothing but attributes."""
    cls = type(value)
    plain = (
        cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ is object.__reduce__
        and cls.__getstate__ is object.__getstate__
        and not any(hasattr(cls, name) for name in ("__setstate__", "__getnewargs__", "__getnewargs_ex__", "__del__"))
        and cls.__module__.partition(".")[0] not in sys.stdlib_module_names
    )
    if not plain:
        return None
    try:
        make, arguments, state, *items = value.__reduce_ex__(2)
    except TypeError:  # of a class written in C
        return None
    if make.__name__ != "__newobj__" or arguments != (cls,) or any(item is not None for item in items):
        return None
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {**(own or {}), **(slots or {})}
