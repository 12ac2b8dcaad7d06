"""Inputs of the networks: each part of an observation normalised, one-hot or, for images, unchanged."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.images import channels_come_last
from lightning_ppo.policy.normalization import ObservationNormalizer
from lightning_ppo.rollout.shapes import Observations
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.support.distributed import Reduce
from lightning_ppo.support.errors import UnsupportedSpaceError
from lightning_ppo.support.spaces import SUPPORTED, space_leaves, space_structure
from lightning_ppo.support.tree import tree_map

SMALLEST_IMAGE = 36
"""Height and width from which a uint8 Box of three dimensions is taken for an image."""


class AsFloat(nn.Module):
    """Observations as they are, in the dtype of the module they live in."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the observations as floating-point numbers."""
        return observations.to(self.like.dtype)


class OneHot(AsFloat):
    """Discrete and MultiDiscrete observations (B, ...) as one-hot vectors, (B, sum of n)."""

    columns: Tensor
    values: Tensor

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__()
        sizes = np.reshape(space.n if isinstance(space, spaces.Discrete) else space.nvec, -1)
        start = np.reshape(space.start, -1)
        columns = np.repeat(np.arange(len(sizes)), sizes)
        values = np.concatenate([first + np.arange(size) for first, size in zip(start, sizes, strict=True)])
        for name, value in (("columns", columns), ("values", values)):
            self.register_buffer(name, torch.from_numpy(value.astype(np.int64)), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return one-hot vectors."""
        components = observations.reshape(observations.shape[0], -1).index_select(1, self.columns)
        return super().forward(components == self.values)


def is_image(space: gymnasium.Space) -> bool:
    """Return whether a space is one of images: a uint8 Box (H, W, C) or (C, H, W) that is large enough."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and sorted(space.shape)[1] >= SMALLEST_IMAGE
    )


class Inputs(nn.Module):
    """Turns observations into what networks take, in the structure of the space.

    Box becomes normalised floats (B, *shape), Discrete and MultiDiscrete one-hot vectors, MultiBinary 0.0 and 1.0;
    images stay uint8.

    Args:
        space: Observation space of one environment.
        normalize: Normalisation settings.

    Raises:
        UnsupportedSpaceError: If a part of the space is not supported.
    """

    def __init__(self, space: gymnasium.Space, normalize: NormalizeConfig) -> None:
        super().__init__()
        self.leaves = space_leaves(space)
        self.structure = space_structure(space)
        if not self.leaves:
            raise UnsupportedSpaceError(f"observation space {space} has no entries")
        self.parts = nn.ModuleList([_part(path, leaf, normalize) for path, leaf in self.leaves.items()])

    @property
    def normalizers(self) -> dict[str, ObservationNormalizer]:
        """The normalisers by the path of their part of the space; that of a plain Box is ``."""
        pairs = zip(self.leaves, self.parts, strict=True)
        return {path: part for path, part in pairs if isinstance(part, ObservationNormalizer)}

    def forward(self, observations: Observations, keys: Sequence[str] | None = None) -> Any:
        """Return tensors (B, ...) in the structure of the space, or only entries `keys` of a Dict."""
        structure = self.structure if keys is None else {key: self.structure[key] for key in keys}
        return tree_map(lambda number, leaf: self.parts[number](leaf), structure, observations)

    def lay_out(self, observations: Observations) -> Observations:
        """Return the same observations (T, N, ...), images with their channels last in memory, as convolutions read."""

        def arrange(number: int, leaf: Tensor) -> Tensor:
            if not isinstance(self.parts[number], nn.Identity) or channels_come_last(leaf.shape[-3:]):
                return leaf
            return leaf.movedim(-3, -1).contiguous().movedim(-1, -3)

        return tree_map(arrange, self.structure, observations)

    def update(
        self, observations: Observations, valid: Tensor, reduce: Reduce, final: Observations | None = None
    ) -> None:
        """Take the valid (T, N) of observations (T, N, ...) into the statistics.

        Args:
            observations: What the policy acted on.
            valid: Which rows are transitions.
            reduce: Sums a float64 tensor over all ranks.
            final: (E, ...), observations beside them that episodes ended with.
        """

        def update(number: int, leaf: Tensor, *others: Tensor) -> None:
            part = self.parts[number]
            if isinstance(part, ObservationNormalizer):
                part.update(torch.cat((leaf[valid], *others)), reduce)

        tree_map(update, self.structure, observations, *(() if final is None else (final,)))


def _part(path: str, leaf: gymnasium.Space, normalize: NormalizeConfig) -> nn.Module:
    if isinstance(leaf, spaces.Box):
        if is_image(leaf):
            return nn.Identity()
        if normalize.observations:
            return ObservationNormalizer(leaf.shape, normalize.observation_clip, normalize.epsilon)
        return AsFloat()
    if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete):
        return OneHot(leaf)
    if isinstance(leaf, spaces.MultiBinary):
        return AsFloat()
    entry = f" of the entry {path!r}" if path else ""
    raise UnsupportedSpaceError(
        f"observation space {leaf}{entry} is not supported; supported are {SUPPORTED}; "
        "drop or convert it with a wrapper (env.wrappers)"
    )
