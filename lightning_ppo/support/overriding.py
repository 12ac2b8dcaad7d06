"""Find out which methods a class overrides."""

from typing import Any


def overrides(instance: Any, base: type, method: str) -> bool:
    """Return whether an instance overrides a method of its base class."""
    inherited = getattr(base, method, None)
    return inherited is not None and getattr(getattr(instance, method), "__func__", None) is not inherited
