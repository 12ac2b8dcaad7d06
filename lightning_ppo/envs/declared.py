"""Compare what environments return with their spaces: structure, shape, dtype and range."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from lightning_ppo.support.errors import EnvironmentFault, one_line
from lightning_ppo.support.notices import warn_once
from lightning_ppo.support.spaces import finite_bounds, space_leaves, space_structure
from lightning_ppo.support.tree import tree_leaves, tree_map

_log = logging.getLogger(__name__)

NOTICE = "lightning_ppo.notice"
"""Info of a copy with a line to log once."""

Problem = tuple[str, str] | None
"""What was returned, and what was expected; None if it is correct."""

_CHOICES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_TOLERANCE = 1e-5
"""Part of a bound by which rounding may exceed it."""


def named(space: gymnasium.Space) -> str:
    """Return a space in one line."""
    return one_line(space, 120)


def _entry(path: str) -> str:
    return f" in the entry {path}" if path else ""


def _children(space: spaces.Dict | spaces.Tuple, path: str) -> list[tuple[Any, gymnasium.Space, str]]:
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [(key, child, f"{path}/{key}" if path else str(key)) for key, child in parts]


# ---------------------------------------------------------------- one observation


def misfit(space: gymnasium.Space, observation: Any, path: str = "") -> Problem:
    """Return how an observation, of one copy or of many, differs from the structure and shapes of its space."""
    entry = _entry(path)
    found = f"an observation of type {type(observation).__name__}{entry}"
    if isinstance(space, spaces.Dict | spaces.Tuple):
        kind = dict if isinstance(space, spaces.Dict) else tuple
        if not isinstance(observation, kind):
            return found, f"but its observation space is a {kind.__name__}"
        parts = observation if isinstance(observation, dict) else dict(enumerate(observation))
        for key, child, below in _children(space, path):
            if key not in parts:
                return f"an observation without the entry {below}", "but its observation space has one"
            problem = misfit(child, parts[key], below)
            if problem is not None:
                return problem
        return None
    if space.shape is None:
        return None
    try:
        shape = None if isinstance(observation, dict) else tuple(np.shape(observation))
    except ValueError:  # nested sequences of different lengths
        shape = None
    if shape is None:
        return found, f"but its observation space is {named(space)}"
    if shape != space.shape:
        return f"an observation of shape {shape}{entry}", f"but its observation space has shape {space.shape}"
    return None


def as_declared(space: gymnasium.Space, observation: Any, path: str = "") -> tuple[Any, Problem, str]:
    """Return one copy's observation in the dtypes of its space.

    Code that stacks copies into one array converts them silently. Here it is known what is lost: all of a value's
    meaning is a problem, digits are worth a line in the log.

    Args:
        space: Its space.
        observation: Has the structure and shapes of the space.
        path: Of an entry of a Dict or Tuple.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = {key: as_declared(child, observation[key], below) for key, child, below in _children(space, path)}
        problem = next((part[1] for part in parts.values() if part[1] is not None), None)
        note = next((part[2] for part in parts.values() if part[2]), "")
        if all(part[0] is observation[key] for key, part in parts.items()):
            return observation, problem, note
        converted = {key: part[0] for key, part in parts.items()}
        return (converted if isinstance(space, spaces.Dict) else tuple(converted.values())), problem, note
    declared: Any = space.dtype
    if isinstance(observation, np.ma.MaskedArray) and np.ma.is_masked(observation):
        return observation, (f"an observation with masked numbers{_entry(path)}", f"expected {named(space)}"), ""
    if getattr(observation, "dtype", None) == declared or not isinstance(space, (spaces.Box, *_CHOICES)):
        return observation, None, ""
    if type(observation) is int and isinstance(space, spaces.Discrete):
        return observation, None, ""
    found: np.ndarray = np.asarray(observation)
    if found.dtype.kind not in "biuf":
        return observation, (f"an observation of dtype {found.dtype}{_entry(path)}", f"expected {named(space)}"), ""
    with np.errstate(invalid="ignore", over="ignore"):
        array = found.astype(declared)
    if declared.kind != "f":
        lost = np.atleast_1d(array != found)
        if lost.any():
            value = f"the observation {np.atleast_1d(found)[lost][0]} of dtype {found.dtype}{_entry(path)}"
            return observation, (value, f"which {named(space)} cannot hold"), ""
    rounded = declared.kind == "f" and not np.can_cast(found.dtype, declared, "safe")
    note = f"dtype {found.dtype}{_entry(path)}: they are rounded to that of {named(space)}" if rounded else ""
    return array if array.ndim else array[()], None, note


def outside(space: gymnasium.Space, observation: Any) -> Problem:
    """Return the first choice or bit of an observation that its space does not have."""
    for (path, leaf), value in zip(space_leaves(space).items(), tree_leaves(observation), strict=True):
        if isinstance(leaf, _CHOICES) and not leaf.contains(value):
            return f"the observation {one_line(value)}{_entry(path)}", f"outside {named(leaf)}"
    return None


# ---------------------------------------------------------------- batches


class Declared:
    """Checks the values of batched observations, NumPy arrays or tensors, against the space of one copy.

    Values that have no meaning are faults: choices that a Discrete, MultiDiscrete or MultiBinary space does not have,
    and what a Box of integers cannot hold. Values that only lie outside the bounds of a Box are one line.

    Args:
        space: What one copy shows to the policy.
    """

    def __init__(self, space: gymnasium.Space) -> None:
        self._rules = [_Rule(path, leaf) for path, leaf in space_leaves(space).items()]
        self._structure = space_structure(space)

    def flags(self, observations: Any) -> list[Tensor]:
        """Return bool tensors, where the observations are, one of which is True if `check` has something to say."""
        found: list[Tensor] = []

        def look(number: int, values: Tensor) -> None:
            broken = self._rules[number].broken(values)
            if broken is not None:
                found.append(broken.any())

        tree_map(look, self._structure, observations)
        return found

    def check(self, observations: Any, place: Callable[[int, int], tuple[int, int]]) -> None:
        """Check observations (K, N, ...).

        Args:
            observations: Of the policy.
            place: Returns the step after which, and the environment by which, row (k, n) was shown.

        Raises:
            EnvironmentFault: If a value has no meaning.
        """

        def say(value: str, k: int, n: int) -> str:
            step, env = place(k, n)
            return f"env {env} returned the observation {value} at step {step} of this process"

        problem = self.problem(observations, say)
        if problem:
            raise EnvironmentFault(problem)

    def problem(self, observations: Any, say: Callable[[str, int, int], str]) -> str:
        """Return what has no meaning in observations (K, N, ...), in a line, or nothing.

        Args:
            observations: Of the policy.
            say: Returns the beginning of the line, of the value and its row (k, n).
        """
        found: list[str] = []

        def check(number: int, values: Any) -> None:
            if not isinstance(values, Tensor):
                values = torch.from_numpy(np.require(values, requirements=("C", "W")))
            broken = self._rules[number].broken(values)
            if broken is not None and broken.any():
                first = tuple(broken.nonzero()[0].tolist())
                found.append(
                    self._rules[number].judge(values[first].item(), values.dtype, lambda x: say(x, *first[:2]))
                )

        tree_map(check, self._structure, observations)
        return next(filter(None, found), "")


class _Limits(NamedTuple):
    low: Tensor
    high: Tensor
    fatal: bool
    """Whether values outside, and fractions, have no meaning."""


class _Rule:
    """The limits of one part of a space.

    Args:
        path: Of the part.
        space: The part, without parts of its own.
    """

    def __init__(self, path: str, space: gymnasium.Space) -> None:
        self.path, self.space = path, space
        self._told = False
        self._limits: dict[Any, _Limits | None] = {}

    def broken(self, values: Tensor) -> Tensor | None:
        """Return where values (K, N, ...) are not as declared; None where nothing can be, or it has been said."""
        key = values.dtype, values.device
        if key not in self._limits:
            self._limits[key] = self._limits_of(values)
        limits = self._limits[key]
        if limits is None or self._told:
            return None
        x = values if values.is_floating_point() else values.long()
        if limits.fatal:
            broken = ~((x >= limits.low) & (x <= limits.high))
            return broken | (x != x.round()) if x.is_floating_point() else broken
        return (x < limits.low) | (x > limits.high)  # a NaN is reported by others

    def _limits_of(self, values: Tensor) -> "_Limits | None":
        space, fatal = self.space, True
        low: Any = None
        high: Any = None
        if isinstance(space, spaces.Discrete):
            low, high = int(space.start), int(space.start + space.n - 1)
        elif isinstance(space, spaces.MultiDiscrete):
            low, high = np.asarray(space.start, np.int64), np.asarray(space.start + space.nvec - 1, np.int64)
        elif isinstance(space, spaces.MultiBinary):
            low, high = 0, 1
        elif isinstance(space, spaces.Box) and space.dtype.kind in "iu":
            kind = np.iinfo(space.dtype)
            fatal = _dtype(space) != values.dtype
            if fatal:
                low, high = kind.min, min(kind.max, np.iinfo(np.int64).max)
            elif (space.low > kind.min).any() or (space.high < kind.max).any():
                most = space.dtype.type(min(kind.max, np.iinfo(np.int64).max))
                low, high = (np.minimum(x, most).astype(np.int64) for x in (space.low, space.high))
        elif isinstance(space, spaces.Box) and space.dtype.kind == "f":
            low, high = finite_bounds(space)
            fatal = False
            if np.isinf(low).all() and np.isinf(high).all():
                return None
            low, high = low - _rounding(low), high + _rounding(high)
        if low is None:
            return None
        dtype = torch.float32 if isinstance(low, np.ndarray) and low.dtype.kind == "f" else torch.int64
        low, high = (torch.as_tensor(bound).to(values.device, dtype) for bound in (low, high))
        return _Limits(low, high, fatal)

    def judge(self, value: Any, dtype: torch.dtype, say: Callable[[str], str]) -> str:
        """Return why a value that was not declared has no meaning; of one that has, say once that it was not declared.

        Args:
            value: Breaks the rule.
            dtype: It came in.
            say: Returns the beginning of the line, of the value.
        """
        text = say(f"{value:g}{_entry(self.path)}")
        if isinstance(self.space, _CHOICES):
            return f"{text}, outside {named(self.space)}"
        if isinstance(self.space, spaces.Box) and self.space.dtype.kind in "iu" and dtype != _dtype(self.space):
            return f"{text} as {str(dtype).removeprefix('torch.')}, which {named(self.space)} cannot hold"
        self._told = True
        message = f"{text}, outside {named(self.space)}: the agent sees it as it is; correct space or environment"
        warn_once(_log, ("range", self.path, named(self.space)), message)
        return ""


def _rounding(bounds: np.ndarray) -> np.ndarray:
    return _TOLERANCE * np.maximum(np.abs(bounds), 1.0)


def _dtype(space: gymnasium.Space) -> torch.dtype:
    return torch.from_numpy(np.empty(0, space.dtype)).dtype
