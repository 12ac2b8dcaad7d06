"""Environments that are given as a class or a function instead of by name."""

from collections.abc import Callable
from typing import Any


class EnvMaker(str):
    """The import path of a class or function that makes an environment, together with that class or function.

    Files hold the path. Other processes get both, also of what only a script or a notebook defines.

    Attributes:
        make: The class or function.
    """

    make: Callable[..., Any]

    def __new__(cls, make: Callable[..., Any]) -> "EnvMaker":
        """Return the path of `make`, with it."""
        name = getattr(make, "__qualname__", type(make).__qualname__)
        maker = super().__new__(cls, f"{getattr(make, '__module__', type(make).__module__)}:{name}")
        maker.make = make
        return maker

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy is made."""
        return EnvMaker, (self.make,)
