"""Importing this imports Lightning without what it only has to know by name: torch's compiler, and matplotlib.

Lightning asks of models whether they are compiled, for which it imports the compiler, and its metrics can draw
themselves. The two take a second and 100 MB, and an uncompiled training needs neither. Where Lightning is imported
already, or the versions are others than those this was written for, nothing changes. No result depends on it, so
`plain` leaves it as it is.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

COMPILER, PLOTS = "torch._dynamo", "torchmetrics.utilities.plot"


class _IsCompiled(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        compiler = sys.modules.get(COMPILER)  # without it nothing has been compiled
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class _OptimizedModule(metaclass=_IsCompiled):
    """Stands for the class of compiled modules, whose instances are its own."""


class _Plots(ModuleType):
    """Stands for the functions that draw metrics: the first call imports them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object if name.startswith("_") else lambda *args, **kwargs: self._real(name)(*args, **kwargs)

    def _real(self, name: str) -> Callable[..., Any]:
        if sys.modules.get(PLOTS) is self:
            del sys.modules[PLOTS]
        return getattr(importlib.import_module(PLOTS), name)


def _as_it_is(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Decorate a function with nothing."""
    return function or _as_it_is


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Have a module stand for the compiler, which can tell compiled modules and leaves functions as they are."""
    if COMPILER in sys.modules:
        yield
        return
    compiler: Any = ModuleType(COMPILER)
    compiler.OptimizedModule, compiler.disable = _OptimizedModule, _as_it_is
    sys.modules[COMPILER] = compiler
    try:
        yield
    finally:
        del sys.modules[COMPILER]


def _import_lightning() -> None:
    """Import Lightning in the light way; leave it to be imported as usual if it does not take that."""
    before = set(sys.modules)
    sys.modules.setdefault(PLOTS, _Plots(PLOTS))
    try:
        with _without_compiler():
            importlib.import_module("pytorch_lightning")
    except (ImportError, AttributeError, TypeError):
        for name in set(sys.modules) - before:
            if name.startswith(("pytorch_lightning", "lightning_fabric", "torchmetrics")):
                del sys.modules[name]
        return
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        # torch hides these from the compiler, and imports it for that when they are called first
        method: Any = getattr(getattr(Optimizer, name), "__wrapped__", None)
        with suppress(AttributeError):
            method.__dynamo_disable = method


if "pytorch_lightning" not in sys.modules:
    _import_lightning()
