"""What environments keep outside of themselves: in their classes and modules, and in variables of functions.

It is not restored, since others may share it. So once it has changed, the state of an environment is not known to be
complete.
"""

import random
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

_KINDS = (
    *(int, float, complex, np.generic, np.ndarray, list, deque, set),
    *(np.random.Generator, np.random.RandomState, random.Random, torch.Generator),
)
"""Numbers, collections and generators; flags and dicts are left out, which say what was warned of or is cached."""


def kept_outside(classes: Iterable[type], modules: Iterable[str], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is kept outside, by name.

    Args:
        classes: Of the environments and the objects in them.
        modules: Where these classes are defined.
        values: Attributes of the environments, of which functions have variables.
    """
    for module in modules:
        yield from _numbers(module, vars(sys.modules[module]))
    for cls in classes:
        yield from _numbers(cls.__qualname__, vars(cls))
        for value in vars(cls).values():
            yield from _variables(value)
    for value in values:
        yield from _variables(value)


def _numbers(owner: str, found: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(found.items()):
        if isinstance(value, _KINDS) and not isinstance(value, bool) and not name.startswith("__"):
            yield f"{owner}.{name}", value


def _variables(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function keeps from one call to the next: variables around it, defaults, attributes."""
    function = getattr(function, "__func__", getattr(function, "fget", function))
    if not isinstance(function, types.FunctionType):
        return
    around = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {}
    for name, cell in around:
        try:
            held[name] = cell.cell_contents
        except ValueError:  # nothing has been put there yet
            continue
    defaults = {f"default {number}": value for number, value in enumerate(function.__defaults__ or ())}
    yield from _numbers(function.__qualname__, held | defaults | (function.__kwdefaults__ or {}) | vars(function))
