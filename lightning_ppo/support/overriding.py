"""Tell what a class of somebody else's makes its own."""

from typing import Any


def overrides(instance: Any, base: type, method: str) -> bool:
    """Return whether an instance has another method of a name than its base class."""
    inherited = getattr(base, method, None)
    return inherited is not None and getattr(getattr(instance, method), "__func__", None) is not inherited
