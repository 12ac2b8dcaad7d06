"""A test of the short selection that takes too long fails."""

import os
import time
from collections.abc import Generator

import pytest

from tests.kit.selection import SHORT, selected

WAITING = 6
"""So many times the limit may pass by the clock, which also runs while other programs have the cores."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("short_limit", "seconds that a test of the short selection may compute", default="10")


def seconds_of_computing() -> float:
    """Return what this process has computed, and half of what its children have, of which two run side by side.

    In seconds of a core, which are about the same on a machine that is busy.
    """
    times = os.times()
    return times.user + times.system + (times.children_user + times.children_system) / 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    computed, clock = seconds_of_computing(), time.monotonic()
    result = yield
    computed, clock = seconds_of_computing() - computed, time.monotonic() - clock
    limit = float(item.config.getini("short_limit"))
    if selected(item.config) == "short" and item.stash[SHORT] and (computed > limit or clock > WAITING * limit):
        pytest.fail(
            f"computed for {computed:.1f} s in {clock:.1f} s; a test of the short selection may take {limit:g} s: "
            "make it faster, or leave it to CI with a marker (docs/testing.md)",
            pytrace=False,
        )
    return result
