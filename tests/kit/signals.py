"""SIGTERM and Ctrl-C end the tests, also while a test trains, which takes the signals over.

Python notes every signal that comes in a pipe, whoever handles it. What training has taken for itself is found there
after the test, which ends soon, since training stops.
"""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Generator
from types import FrameType

import pytest

WATCHED = (signal.SIGINT, signal.SIGTERM)
_own: Counter[int] = Counter()
_pipe: list[int] = []
_pid = os.getpid()


_raise = signal.raise_signal


def send(number: int) -> None:
    """Send this process a signal that is meant for what is tested, and does not end the tests."""
    _own[number] += 1
    _raise(number)


def end(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _pid:  # in a forked process, where what handles signals in a training has this handler, too
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    pytest.exit(f"stopped by {signal.Signals(number).name}", returncode=128 + number)


def release() -> None:
    """Let a forked process have its signals for itself, and be ended as any other."""
    with contextlib.suppress(ValueError):  # of a thread that is not the main one
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    _pipe[:] = os.pipe()
    for end_of_pipe in _pipe:
        os.set_blocking(end_of_pipe, False)
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, end)
    os.register_at_fork(after_in_child=release)


def received() -> list[str]:
    """Return the names of the watched signals that have come since the last call, and were not sent by `send`."""
    numbers = Counter()
    with contextlib.suppress(BlockingIOError):
        while block := os.read(_pipe[0], 4096):
            numbers.update(block)
    others = numbers - _own
    _own.clear()
    return [number.name for number in WATCHED if others[number]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    if came := received():
        item.session.shouldstop = f"stopped by {', '.join(came)}"
    return result
