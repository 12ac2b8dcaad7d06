"""Gymnasium spaces as plain data, so that a checkpoint holds them without pickled objects."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from lightning_ppo.errors import UnsupportedSpaceError


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
    raise UnsupportedSpaceError(f"the space {space} is not supported; supported are Box and Discrete")


def space_from_spec(spec: dict[str, Any] | gymnasium.Space) -> gymnasium.Space:
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
    raise UnsupportedSpaceError(f"unknown kind of space {kind!r}")
