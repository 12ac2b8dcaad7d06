"""Observations in any convenient form, converted to the batch of tensors that a policy takes, and actions back."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from lightning_ppo.envs.declared import Declared, named
from lightning_ppo.envs.masks import choices_of, joined_mask, mask_of, row_without_choice
from lightning_ppo.rollout.shapes import Observations
from lightning_ppo.support.errors import ConfigError, one_line
from lightning_ppo.support.spaces import space_leaves, space_structure
from lightning_ppo.support.tree import tree_leaves, tree_map


class Batching:
    """Reads observations of one space, checked as those of environments are in training.

    Args:
        space: What the policy acts on.
    """

    def __init__(self, space: gymnasium.Space) -> None:
        self._parts = [(path, leaf, _dtype(leaf)) for path, leaf in space_leaves(space).items()]
        self._structure = space_structure(space)
        self._declared = Declared(space)

    def read(self, observations: Any, device: torch.device) -> "Batch":
        """Return observations as a batch on a device.

        Arrays, numbers and nested dicts and tuples of them are taken as well as tensors, and one observation as well as
        a batch of them. They get the dtypes that the space declares.

        Raises:
            ConfigError: If they are not of this space.
        """
        given = _parts(self._structure, observations, "")
        arrays = [self._numbers(number, value) for number, value in given.items()]
        shapes = [tuple(leaf.shape or ()) for _, leaf, _ in self._parts]
        is_single = all(array.dim() == len(shape) for array, shape in zip(arrays, shapes, strict=True))
        if is_single:
            arrays = [array.unsqueeze(0) for array in arrays]
        count = arrays[0].shape[0] if arrays[0].dim() else 1
        for array, shape, (path, *_) in zip(arrays, shapes, self._parts, strict=True):
            if tuple(array.shape) != (count, *shape):
                found = tuple(array.shape[1:] if is_single else array.shape)
                wanted = f"(B, {', '.join(map(str, shape))})" if shape else "(B,)"
                raise ConfigError(f"observations: expected the shape {wanted} or {shape}{_entry(path)}, got {found}")
        self._check(arrays, is_single)
        is_numpy = not any(isinstance(value, Tensor) for value in given.values())
        batch = tree_map(lambda number: arrays[number].to(device, self._parts[number][2]), self._structure)
        return Batch(batch, count, is_single, is_numpy, device)

    def _numbers(self, number: int, value: Any) -> Tensor:
        """Return a part of observations as a tensor; floats in the dtype that its space declares."""
        path, leaf, dtype = self._parts[number]
        found = _numbers(value, "observations", f"numbers of {named(leaf)}{_entry(path)}")
        return found.to(dtype) if dtype.is_floating_point else found

    def _check(self, arrays: list[Tensor], is_single: bool) -> None:
        """Raise ConfigError if a value of a batch is no finite number, or none that the space has."""

        def say(value: str, _: int, row: int) -> str:
            return f"observations: {value}" + ("" if is_single else f" of row {row}")

        for (path, leaf, _), array in zip(self._parts, arrays, strict=True):
            if array.is_floating_point() and not array.isfinite().all():
                bad = tuple((~array.isfinite()).nonzero()[0].tolist())
                value = say(f"{array[bad].item()}{_entry(path)}", 0, bad[0])
                raise ConfigError(f"{value}, expected finite numbers of {named(leaf)}")
        problem = self._declared.problem(tree_map(lambda number: arrays[number][None], self._structure), say)
        if problem:
            raise ConfigError(problem)


class Batch:
    """A batch of observations, and how to read and return what goes with it.

    Attributes:
        observations: (B, ...).
        count: B.

    Args:
        observations: (B, ...).
        count: B.
        is_single: Whether they were given as one observation, without a batch.
        is_numpy: Whether they were given as anything but tensors.
        device: Where they are.
    """

    def __init__(
        self, observations: Observations, count: int, is_single: bool, is_numpy: bool, device: torch.device
    ) -> None:
        self.observations = observations
        self.count, self._is_single, self._is_numpy, self._device = count, is_single, is_numpy, device

    def masks(self, action_masks: Any, space: gymnasium.Space, num_choices: int) -> Tensor | None:
        """Return masks (B, M) of these observations, given as they were, or as the environment gives them.

        Args:
            action_masks: Of the actions.
            space: Of the actions.
            num_choices: M.
        """
        if action_masks is None:
            return None
        if not num_choices:
            raise ConfigError(f"action_masks: actions in {named(space)} have no choices that a mask could forbid")
        if not isinstance(action_masks, Tensor):
            action_masks = self._joined(action_masks, space, num_choices)
        masks = self._flags(action_masks, "action_masks", (num_choices,))
        row = row_without_choice(masks.cpu().numpy(), choices_of(space))
        if row is not None:
            raise ConfigError(f"action_masks: row {row} masks every choice of an action; at least one must be legal")
        return masks

    def states(self, states: Any, initial: Tensor | None) -> Tensor | None:
        """Return the recurrent states (B, H) before these observations; `initial` (B, H) where none are given."""
        if states is None or initial is None:
            if states is not None:
                raise ConfigError("state: the policy has no memory (policy.core), so expected None")
            return initial
        found = self._rows(_numbers(states, "state"), "state", tuple(initial.shape[1:]))
        return found.to(initial)

    def starts(self, starts: Any) -> Tensor:
        """Return whether an episode starts with each of these observations, (B,) bool; with none where not given."""
        if starts is None:
            return torch.zeros(self.count, dtype=torch.bool, device=self._device)
        return self._flags(starts, "starts", ())

    def like_given(self, values: Any) -> Any:
        """Return values (B, ...) as NumPy arrays, and without a batch, where the observations were so."""
        if self._is_single:
            values = tree_map(lambda x: x[0], values)
        if self._is_numpy:
            values = tree_map(lambda x: x.cpu().numpy()[()], values)
        return values

    def _joined(self, masks: Any, space: gymnasium.Space, num_choices: int) -> np.ndarray:
        """Return masks (B, M), or (M,) of a single observation, of any form in which environments give them."""
        try:
            if self._is_single:
                return joined_mask(space, masks, num_choices)
            if any(len(leaf) != self.count for leaf in tree_leaves(masks)):
                raise ValueError(f"expected those of {self.count} observations")
            return np.stack([joined_mask(space, mask_of(masks, row), num_choices) for row in range(self.count)])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"action_masks: {one_line(error)}") from None

    def _flags(self, given: Any, key: str, shape: tuple[int, ...]) -> Tensor:
        flags = self._rows(_numbers(given, key), key, shape).to(self._device)
        strange = (flags != 0) & (flags != 1)
        if strange.any():
            raise ConfigError(f"{key}: expected True and False, got {flags[strange][0].item()}")
        return flags.bool()

    def _rows(self, given: Tensor, key: str, shape: tuple[int, ...]) -> Tensor:
        rows = given.unsqueeze(0) if self._is_single and given.dim() == len(shape) else given
        if tuple(rows.shape) != (self.count, *shape):
            raise ConfigError(f"{key}: expected the shape {(self.count, *shape)}, got {tuple(rows.shape)}")
        return rows


def _entry(path: str) -> str:
    return f" for the entry {path!r}" if path else ""


def _parts(structure: Any, observations: Any, path: str) -> dict[int, Any]:
    """Return the parts of observations by their number in a structure."""
    kind = type(observations).__name__
    if isinstance(structure, dict):
        given = list(observations) if isinstance(observations, Mapping) else []
        if not set(given) >= structure.keys():
            raise ConfigError(
                f"observations: expected a dict with {list(structure)}{_entry(path)}, got {given or f'a {kind}'}"
            )
    elif isinstance(structure, tuple):
        if not isinstance(observations, list | tuple) or len(observations) != len(structure):
            raise ConfigError(f"observations: expected a tuple of {len(structure)}{_entry(path)}, got a {kind}")
    else:
        return {structure: observations}
    found: dict[int, Any] = {}
    for key, child in structure.items() if isinstance(structure, dict) else enumerate(structure):
        found |= _parts(child, observations[key], f"{path}/{key}".strip("/"))
    return found


def _numbers(value: Any, key: str, wanted: str = "numbers") -> Tensor:
    """Return numbers as a tensor, in the dtype that they have.

    Raises:
        ConfigError: If they are none, or some of them are masked.
    """
    found: Any = value
    try:
        if not isinstance(value, Tensor):
            array = np.ma.filled(value, np.nan) if np.ma.is_masked(value) else np.array(value)
            found = torch.from_numpy(array.astype("f8" if array.dtype.kind == "f" else array.dtype.newbyteorder("=")))
        if not found.is_complex():
            return found
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ConfigError(f"{key}: expected {wanted}, got {one_line(repr(value), 60)}")


def _dtype(space: gymnasium.Space) -> torch.dtype:
    return torch.from_numpy(np.empty(0, space.dtype)).dtype
