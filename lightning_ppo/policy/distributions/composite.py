"""Independent distributions over the parts of a Dict or Tuple space."""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.distributions.base import ActionHead
from lightning_ppo.support.spaces import space_leaves, space_structure
from lightning_ppo.support.tree import tree_map


class CompositeHead(ActionHead):
    """The product of one distribution per part; outputs, parameters, noise, choices and actions are laid end to end.

    Args:
        space: A Dict or Tuple space, nested as it may be.
        make: Returns the head of a part.
    """

    def __init__(self, space: spaces.Dict | spaces.Tuple, make: Callable[[gymnasium.Space], ActionHead]) -> None:
        super().__init__()
        self.structure = space_structure(space)
        parts = [make(leaf) for leaf in space_leaves(space).values()]
        self.parts = nn.ModuleList(parts)
        self._heads = parts
        for name in ("num_outputs", "num_features", "num_parameters", "num_noise", "num_choices"):
            setattr(self, name, sum(getattr(part, name) for part in parts))
        self._sizes = [math.prod(part.action_shape) for part in parts]
        self.action_shape = (sum(self._sizes),)

    def shrink(self, amount: float) -> None:
        """Lower the log standard deviations of all Gaussian parts."""
        for part in self._heads:
            part.shrink(amount)

    def set_noise_color(self, exponent: float) -> None:
        """Set the colour of the noise of all Gaussian parts."""
        for part in self._heads:
            part.set_noise_color(exponent)

    @property
    def action_dtype(self) -> torch.dtype:
        """Dtype of an action as the policy stores it; integers up to 2^24 are exact in float32."""
        return reduce(torch.promote_types, (part.action_dtype for part in self._heads))

    def _split(self, x: Tensor, name: str) -> tuple[Tensor, ...]:
        return x.split([getattr(part, name) for part in self._heads], -1)

    def _actions(self, actions: Tensor) -> list[Tensor]:
        pieces = zip(self._heads, actions.split(self._sizes, -1), strict=True)
        return [a.to(part.action_dtype).reshape(*a.shape[:-1], *part.action_shape) for part, a in pieces]

    def _join(self, actions: Sequence[Tensor]) -> Tensor:
        pieces = zip(self._heads, actions, strict=True)
        flat = [a.unsqueeze(-1) if part.action_shape == () else a for part, a in pieces]
        return torch.cat([a.to(self.action_dtype) for a in flat], -1)

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return the parameters of all parts, (B, P)."""
        own = self._split(outputs[..., : self.num_outputs], "num_outputs")
        features = self._split(outputs[..., self.num_outputs :], "num_features")
        masks: Sequence[Tensor | None] = [None] * len(self._heads)
        if action_masks is not None:
            masks = [mask if mask.shape[-1] else None for mask in self._split(action_masks, "num_choices")]
        return torch.cat(
            [
                part.parameters_of(torch.cat((o, f), -1), mask)
                for part, o, f, mask in zip(self._heads, own, features, masks, strict=True)
            ],
            -1,
        )

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the noise of all parts."""
        return torch.cat([part.noise(shape, generator) for part in self._heads], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions (B, A)."""
        pieces = zip(
            self._heads, self._split(parameters, "num_parameters"), self._split(noise, "num_noise"), strict=True
        )
        return self._join([part.sample(p, n) for part, p, n in pieces])

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions (B, A)."""
        pieces = zip(self._heads, self._split(parameters, "num_parameters"), strict=True)
        return self._join([part.mode(p) for part, p in pieces])

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over parts of log-probabilities, (B,)."""
        pieces = zip(self._heads, self._split(parameters, "num_parameters"), self._actions(actions), strict=True)
        return torch.stack([part.log_prob(p, a) for part, p, a in pieces]).sum(0)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the sum over parts of entropies, (B,)."""
        pieces = zip(self._heads, self._split(parameters, "num_parameters"), strict=True)
        return torch.stack([part.entropy(p) for part, p in pieces]).sum(0)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the sum over parts of KL divergences, (B,)."""
        pieces = zip(
            self._heads, self._split(parameters, "num_parameters"), self._split(other, "num_parameters"), strict=True
        )
        return torch.stack([part.kl(p, q) for part, p, q in pieces]).sum(0)

    def to_env(self, actions: Tensor) -> Any:
        """Return what the environment is given, in the structure of the space."""
        own = [part.to_env(a) for part, a in zip(self._heads, self._actions(actions), strict=True)]
        return tree_map(own.__getitem__, self.structure)
