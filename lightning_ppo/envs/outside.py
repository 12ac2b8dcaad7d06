"""What environments keep outside of themselves: in their classes and modules, and in variables of functions.

It is not restored, since others may share it. So once it has changed, the state of an environment is not known to be
complete.
"""

import random
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


def kept_outside(classes: Iterable[type], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is kept outside, by name.

    Args:
        classes: Of the environments and the objects in them.
        values: Attributes of the environments, of which functions have variables.
    """
    functions = [function for function in map(_function, values) if function is not None]
    for cls in classes:
        yield from _numbers(cls.__qualname__, vars(cls))
        functions += [function for function in map(_function, vars(cls).values()) if function is not None]
    for function in functions:
        yield from _variables(function)
    # not those of the modules of that name, which may have been imported again
    for module in {id(function.__globals__): function.__globals__ for function in functions}.values():
        yield from _numbers(str(module.get("__name__")), module)


def _function(value: Any) -> types.FunctionType | None:
    """Return the function in a method, a property or whatever else a class or an object has."""
    found = getattr(value, "__func__", getattr(value, "fget", value))
    return found if isinstance(found, types.FunctionType) else None


def _numbers(owner: str, found: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(found.items()):
        if isinstance(value, _KINDS) and not isinstance(value, bool) and not name.startswith("__"):
            yield f"{owner}.{name}", value


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function keeps from one call to the next: variables around it, defaults, attributes."""
    around = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held: dict[str, Any] = {}
    for name, cell in around:
        try:
            held[name] = cell.cell_contents
        except ValueError:  # nothing has been put there yet
            continue
    defaults = {f"default {number}": value for number, value in enumerate(function.__defaults__ or ())}
    yield from _numbers(function.__qualname__, held | defaults | (function.__kwdefaults__ or {}) | vars(function))
