"""A test of the short selection that takes too long fails."""

import os
import time
from collections.abc import Generator
from typing import NamedTuple

import psutil
import pytest

from tests.kit.selection import SHORT, selected

WAITING = 3
"""So many times the limit may pass by the clock while a core has nothing to do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("short_limit", "seconds that a test of the short selection may compute", default="10")


class Spent(NamedTuple):
    """Seconds up to now, or between two moments."""

    computing: float
    """Of a core: what this process has computed, and half of what its children have, of which two run side by side.

    They are about the same on a machine that is busy.
    """

    clock: float
    idle: float
    """Of all cores together."""

    @classmethod
    def now(cls) -> "Spent":
        times = os.times()
        computing = times.user + times.system + (times.children_user + times.children_system) / 2
        return cls(computing, time.monotonic(), psutil.cpu_times().idle)

    def since(self, before: "Spent") -> "Spent":
        return Spent(*(now - then for now, then in zip(self, before, strict=True)))

    def exceeds(self, limit: float) -> bool:
        """Return whether it is too much of computing, or of waiting on a machine that had a core free all the time."""
        return self.computing > limit or min(self.clock, self.idle) > WAITING * limit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    before = Spent.now()
    result = yield
    spent, limit = Spent.now().since(before), float(item.config.getini("short_limit"))
    if selected(item.config) == "short" and item.stash[SHORT] and spent.exceeds(limit):
        pytest.fail(
            f"computed for {spent.computing:.1f} s in {spent.clock:.1f} s; a test of the short selection may take "
            f"{limit:g} s: make it faster, or leave it to CI with a marker (docs/testing.md)",
            pytrace=False,
        )
    return result
