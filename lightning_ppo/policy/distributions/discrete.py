"""Distributions over Discrete, MultiDiscrete and MultiBinary spaces."""

from typing import ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from lightning_ppo.policy.distributions.base import ActionHead

MASKED = -1e9
"""Logit of a forbidden choice: its probability is exactly 0 in float32, and no arithmetic with it gives NaN."""


def _masked(logits: Tensor, action_masks: Tensor | None) -> Tensor:
    return logits if action_masks is None else torch.where(action_masks, logits, MASKED)


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw Gumbel noise: argmax(logits + noise) is a sample of the categorical distribution (Gumbel 1954)."""
    return torch.empty(shape, device=generator.device).exponential_(generator=generator).log_().neg_()


class CategoricalHead(ActionHead):
    """A categorical distribution over a Discrete space; its parameters are the logits (B, K)."""

    handles: ClassVar[tuple[type[gymnasium.Space], ...]] = (spaces.Discrete,)

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.num_outputs = self.num_parameters = self.num_noise = self.num_choices = int(space.n)
        self.start = int(space.start)
        self.action_shape = ()

    @property
    def action_dtype(self) -> torch.dtype:
        """Dtype of an action as the policy stores it."""
        return torch.int64

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return the outputs as logits, MASKED where the choice is forbidden."""
        return _masked(outputs, action_masks)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise."""
        return gumbel((*shape, self.num_noise), generator)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions (B,) in 0..K-1."""
        return (parameters + noise).argmax(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions (B,)."""
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log-probabilities (B,) of actions (B,)."""
        return parameters.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return -sum p log p, (B,)."""
        log_probs = parameters.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return sum p (log p - log q), (B,)."""
        log_p, log_q = parameters.log_softmax(-1), other.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def to_env(self, actions: Tensor) -> Tensor:
        """Return the actions shifted to the space's first element."""
        return actions + self.start if self.start else actions


class MultiCategoricalHead(ActionHead):
    """D independent categorical distributions; a MultiBinary space is one of two choices per bit.

    Parameters (B, sum of K_d) are the logits of the first component, then those of the second, and so on.
    """

    handles: ClassVar[tuple[type[gymnasium.Space], ...]] = (spaces.MultiDiscrete, spaces.MultiBinary)
    columns: Tensor
    present: Tensor
    start: Tensor

    def __init__(self, space: spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        super().__init__()
        if isinstance(space, spaces.MultiBinary):
            sizes, start = np.full(int(np.prod(space.shape)), 2), np.zeros(space.shape, np.int64)
        else:
            sizes, start = np.reshape(space.nvec, -1).astype(np.int64), np.asarray(space.start, np.int64)
        self.space_shape = tuple(space.shape)
        self.space_dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        self.num_outputs = self.num_parameters = self.num_noise = self.num_choices = int(sizes.sum())
        self.action_shape = (len(sizes),)
        # logits (B, sum of K_d) are laid out as (B, D, max of K_d), the rest of a shorter row being MASKED
        choices = np.arange(sizes.max())
        offsets = np.concatenate(([0], sizes.cumsum()[:-1]))
        present = choices < sizes[:, None]
        columns = np.where(present, offsets[:, None] + choices, 0).reshape(-1)
        for name, value in (("columns", columns), ("present", present), ("start", start)):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)), persistent=False)

    def _table(self, parameters: Tensor) -> Tensor:
        rows = parameters.index_select(-1, self.columns).unflatten(-1, self.present.shape)
        return torch.where(self.present, rows, MASKED)

    @property
    def action_dtype(self) -> torch.dtype:
        """Dtype of an action as the policy stores it."""
        return torch.int64

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return the outputs as logits, MASKED where the choice is forbidden."""
        return _masked(outputs, action_masks)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise."""
        return gumbel((*shape, self.num_noise), generator)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions (B, D), component d in 0..K_d-1."""
        return self._table(parameters + noise).argmax(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions (B, D)."""
        return self._table(parameters).argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over components of log-probabilities, (B,)."""
        log_probs = self._table(parameters).log_softmax(-1)
        return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the sum over components of entropies, (B,)."""
        log_probs = self._table(parameters).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum((-2, -1))

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the sum over components of KL divergences, (B,)."""
        log_p, log_q = self._table(parameters).log_softmax(-1), self._table(other).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum((-2, -1))

    def to_env(self, actions: Tensor) -> Tensor:
        """Return actions (B, *space.shape), shifted to the space's first elements."""
        return (actions.unflatten(-1, self.space_shape) + self.start).to(self.space_dtype)
