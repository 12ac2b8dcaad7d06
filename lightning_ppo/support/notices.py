"""Warnings that are logged once in a process, however many environments or rollouts cause them."""

import logging
from collections.abc import Hashable

_said: set[Hashable] = set()


def warn_once(log: logging.Logger, key: Hashable, message: str) -> None:
    """Log a warning, unless one with the same key has been logged before."""
    if key not in _said:
        _said.add(key)
        log.warning("%s", message)


def forget() -> None:
    """Forget which warnings have been logged."""
    _said.clear()
