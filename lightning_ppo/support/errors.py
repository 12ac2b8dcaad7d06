"""The errors that a user can act on: each message is one line that names the cause and the remedy."""

import difflib
import signal
import sys
import traceback
from collections.abc import Iterable

TRUST_HELP = "a package, or the whole name of something, that a checkpoint from elsewhere may name; may be repeated"
"""What the option `--trust` means, wherever a checkpoint is read."""


class UserError(Exception):
    """Base of all errors whose message is meant for a person; the command line prints it without a traceback."""


class ConfigError(UserError):
    """A setting is unknown, has the wrong type, or cannot be combined with another."""


class EnvironmentFault(UserError):
    """An environment could not be built, raised, or returned something it must not."""


class UnsupportedSpaceError(UserError):
    """An observation or action space that no encoder or action head handles."""


class NonFiniteError(UserError):
    """A loss, gradient or rollout tensor became NaN or infinite; nothing was learnt from it."""


class RankLostError(UserError):
    """Another process of a data-parallel training ended, or did not come to where all have to meet."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another task."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is missing or not whole, so that another version of it may serve."""


def print_error(error: Exception, debug: bool, option: str) -> int:
    """Print the error that ended a command as one line, after its traceback if `debug`, and return the exit code.

    Args:
        error: The error.
        debug: Whether to print the traceback.
        option: The option that asks for tracebacks.
    """
    if debug:
        traceback.print_exc()
    message = str(error) if isinstance(error, UserError) else f"{described(error)} ({option} shows where)"
    print(f"error: {message}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def one_line(text: object, limit: int | None = None) -> str:
    """Return a text, or the message of an error, on one line of at most `limit` characters."""
    return " ".join(str(text).split())[:limit]


def described(error: BaseException, limit: int | None = None) -> str:
    """Return type and message of an error on one line, the message cut after `limit` characters.

    Of an error without a message, such as that of a bare `assert`, the line that raised it stands in its place.
    """
    message = one_line(error, limit)
    if not message and (frames := traceback.extract_tb(error.__traceback__)):
        message = one_line(f"{frames[-1].line} ({frames[-1].filename}:{frames[-1].lineno})", limit)
    return f"{type(error).__name__}: {message}".removesuffix(": ")


def how_it_ended(exit_code: int | None) -> str:
    """Return how a process ended, from its exit code as `multiprocessing` gives it."""
    if exit_code is not None and exit_code < 0:
        return f"by {signal.Signals(-exit_code).name}"
    return f"with exit code {exit_code}"


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the valid name that looks most like `name`."""
    return difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)[0]
