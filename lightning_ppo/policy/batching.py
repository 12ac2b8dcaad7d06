"""Observations in any convenient form, converted to the batch of tensors that a policy takes."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Observations
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.tree import tree_leaves, tree_map


class Batch:
    """Observations as a batch of tensors, and the way back for actions.

    Arrays, numbers and nested dicts and tuples of them are taken as well as tensors, and one observation as well as a
    batch of them.

    Attributes:
        observations: (B, ...).

    Args:
        observations: In any of these forms.
        structure: Nested dicts and tuples of the space, with the position of each part in `spaces`.
        spaces: The parts of the space by their path.
        device: Where the tensors go.

    Raises:
        ConfigError: If they are not of this space.
    """

    def __init__(
        self, observations: Any, structure: Any, spaces: Mapping[str, gymnasium.Space], device: torch.device
    ) -> None:
        paths, parts = list(spaces), list(spaces.values())
        numbers = tree_leaves(structure)
        leaves = _parts(structure, observations, "")
        shapes = {number: tuple(parts[number].shape or ()) for number in numbers}
        arrays = {number: _tensor(leaf, _entry(paths[number])) for number, leaf in leaves.items()}
        self.is_numpy = not any(isinstance(leaf, Tensor) for leaf in leaves.values())
        self.is_single = all(array.dim() == len(shapes[number]) for number, array in arrays.items())
        if self.is_single:
            arrays = {number: array.unsqueeze(0) for number, array in arrays.items()}
        first = arrays[numbers[0]]
        count = first.shape[0] if first.dim() else 1
        for number, array in arrays.items():
            shape = shapes[number]
            if tuple(array.shape) != (count, *shape):
                found = tuple(array.shape[1:] if self.is_single else array.shape)
                wanted = f"(B, {', '.join(map(str, shape))})" if shape else "(B,)"
                raise ConfigError(
                    f"observations: expected the shape {wanted} or {shape}{_entry(paths[number])}, got {found}"
                )
        self.observations: Observations = tree_map(lambda number: arrays[number].to(device), structure)

    def masks(self, action_masks: Any, num_choices: int, device: torch.device) -> Tensor | None:
        """Return masks (B, M) of these observations, given in the same way."""
        if action_masks is None:
            return None
        masks = _tensor(action_masks, "", "action_masks").to(device, torch.bool)
        if self.is_single and masks.dim() == 1:
            masks = masks.unsqueeze(0)
        if masks.dim() != 2 or masks.shape[1] != num_choices:
            raise ConfigError(f"action_masks: expected the shape (B, {num_choices}), got {tuple(masks.shape)}")
        return masks

    def like_given(self, actions: Any) -> Any:
        """Return actions (B, ...) as NumPy arrays, and without a batch, where the observations were so."""
        if self.is_single:
            actions = tree_map(lambda x: x[0], actions)
        if self.is_numpy:
            actions = tree_map(lambda x: x.cpu().numpy()[()], actions)
        return actions


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


def _tensor(value: Any, name: str, key: str = "observations") -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: expected numbers{name}, got {type(value).__name__}") from None
