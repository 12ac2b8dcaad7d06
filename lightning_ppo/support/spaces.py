"""Gymnasium spaces as plain data, so that a checkpoint holds them without pickled objects."""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from lightning_ppo.support.errors import UnsupportedSpaceError

SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"

_KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple")

UNBOUNDED = 1e18
"""Size from which a bound counts as none: the square of such a number is beyond float32."""


def finite_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds in float64, infinite where they lie at the extremes of numbers and so stand for none.

    One of these extremes is the smallest positive number, which C++ calls the minimum, as the bound from below.
    """
    dtype: Any = space.dtype
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    largest = min(UNBOUNDED, float(np.finfo(dtype).max)) if dtype.kind == "f" else UNBOUNDED
    low, high = (np.where(np.abs(bound) >= largest, np.copysign(np.inf, bound), bound) for bound in (low, high))
    smallest = [float(np.finfo(kind).tiny) for kind in (np.float32, np.float64)]
    return np.where(np.isin(low, smallest), -np.inf, low), high


def space_to_spec(space: gymnasium.Space) -> dict[str, Any]:
    """Return a description of a space in strings, numbers and tensors.

    Raises:
        UnsupportedSpaceError: If the kind of space is unknown.
    """
    if isinstance(space, spaces.Box):
        low, high = (torch.from_numpy(np.array(bound)) for bound in (space.low, space.high))
        return {"kind": "Box", "low": low, "high": high, "dtype": space.dtype.name}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = (torch.from_numpy(np.array(values, np.int64)) for values in (space.nvec, space.start))
        return {"kind": "MultiDiscrete", "nvec": nvec, "start": start, "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {key: space_to_spec(child) for key, child in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [space_to_spec(child) for child in space.spaces]}
    raise UnsupportedSpaceError(f"the space {space} is not supported; supported are {SUPPORTED}")


def is_spec(value: Any) -> bool:
    """Return whether a value is a description of a space."""
    return isinstance(value, Mapping) and value.get("kind") in _KINDS


def space_from_spec(spec: Mapping[str, Any] | gymnasium.Space) -> gymnasium.Space:
    """Return the space that `space_to_spec` described; a space is returned as it is.

    Raises:
        UnsupportedSpaceError: If the description is of an unknown kind.
    """
    if isinstance(spec, gymnasium.Space):
        return spec
    kind = spec.get("kind")
    if kind == "Box":
        return spaces.Box(spec["low"].numpy(), spec["high"].numpy(), dtype=np.dtype(spec["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(spec["n"], start=spec["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            spec["nvec"].numpy(), dtype=np.dtype(spec["dtype"]).type, start=spec["start"].numpy()
        )
    if kind == "MultiBinary":
        return spaces.MultiBinary(spec["n"])
    if kind == "Dict":
        # in the order that was saved: a plain dict would be sorted by key
        return spaces.Dict([(key, space_from_spec(child)) for key, child in spec["spaces"].items()])
    if kind == "Tuple":
        return spaces.Tuple([space_from_spec(child) for child in spec["spaces"]])
    raise UnsupportedSpaceError(f"unknown kind of space {kind!r}")


def space_leaves(space: gymnasium.Space, path: str = "") -> dict[str, gymnasium.Space]:
    """Return the spaces without parts that Dict and Tuple spaces are made of, by their path (`camera/left`, `0/goal`).

    A space that is neither has the path ``.

    Raises:
        UnsupportedSpaceError: If two parts have the same path.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return {path: space}
    leaves: dict[str, gymnasium.Space] = {}
    for name, child in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
        below = space_leaves(child, f"{path}/{name}" if path else str(name))
        if leaves.keys() & below.keys():
            raise UnsupportedSpaceError(f"two entries of the space have the path {min(below)!r}; rename one of them")
        leaves |= below
    return leaves


def space_structure(space: gymnasium.Space) -> Any:
    """Return nested dicts and tuples like a space's elements, with the position of each part in `space_leaves`."""
    return _number(space, iter(range(len(space_leaves(space)))))


def _number(space: gymnasium.Space, numbers: Iterator[int]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _number(child, numbers) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_number(child, numbers) for child in space.spaces)
    return next(numbers)
