"""How the threads of one torch operation wait for each other.

By default they keep their cores busy while they wait, for several milliseconds. Where another program needs a core, a
thread that has work then waits for one that only waits, at each of the dozens of operations of a network
(docs/speed.md). This is a setting, not a shortcut, so `plain` does not change it.
"""

import os
import sys

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables with which a person decides it."""

_spin = False


def sleep_while_waiting() -> None:
    """Let threads sleep while they wait, unless a variable of `NAMES` decides; torch reads them when it is imported."""
    global _spin
    if not any(name in os.environ for name in NAMES):
        _spin = "torch" in sys.modules
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def threads_spin() -> bool:
    """Return whether torch was imported too early for threads to sleep while they wait, and nobody has decided it."""
    return _spin
