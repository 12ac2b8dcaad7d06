"""The two shapes data takes: a time-major `Rollout` (T, N, ...) and a flat `Minibatch` (B, ...)."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Observations = Tensor | dict[str, Any]
"""A tensor, or a nested dict of tensors that share their leading dimensions."""


def tree_map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `function` to every tensor of a tensor or a nested dict of tensors."""
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    return function(tree)


class Episodes(NamedTuple):
    """Undiscounted returns and lengths of finished episodes, each of shape (E,), float64 and int64, on the CPU."""

    returns: Tensor
    lengths: Tensor


class Minibatch(NamedTuple):
    """B transitions; every field but `observations` and `actions` has shape (B,) or (B, P)."""

    observations: Observations
    actions: Tensor
    distribution: Tensor
    """Parameters of the behaviour policy's action distribution, (B, P)."""
    log_probs: Tensor
    """Behaviour log-probabilities."""
    values: Tensor
    """Values predicted when the rollout was collected."""
    advantages: Tensor
    returns: Tensor
    weights: Tensor
    """1 for a transition, 0 for a row that is none (see `Rollout.valid`)."""


@dataclass
class Rollout:
    """T steps of N environments, time-major.

    Attributes:
        observations: (T, N, ...), what the policy saw.
        actions: (T, N, ...), what it sampled, before any clipping to the action space.
        distribution: (T, N, P), parameters of the distribution it sampled from.
        log_probs: (T, N), log-probabilities of the actions.
        values: (T, N), value estimates of the observations.
        next_values: (T, N), value estimates of the true next observations (the final one where an episode ended).
        boundary_observations: (K, ...), next observations that are not those of the following row: after the last step,
            and at episode ends that were reset within the step.
        boundary_rows: (K,) int64, the row t x N + n that each of them follows.
        rewards: (T, N), as the environment gave them.
        terminations: (T, N) bool, the episode reached a terminal state at this step.
        truncations: (T, N) bool, the episode was cut off at this step.
        valid: (T, N) bool, False for filler rows of NEXT_STEP autoreset, which are no transitions.
        episodes: Episodes that ended within this rollout.
        policy_version: Number of policy updates before the rollout was collected.
        collect_seconds: Wall-clock time of collecting.
        gamma: Discount factor, set by the stream as are all that follow.
        gae_lambda: Lambda of GAE.
        scaled_rewards: (T, N), what advantages are estimated from.
        advantages: (T, N).
        returns: (T, N), value targets.
    """

    observations: Observations
    actions: Tensor
    distribution: Tensor
    log_probs: Tensor
    values: Tensor
    next_values: Tensor
    boundary_observations: Observations
    boundary_rows: Tensor
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor
    valid: Tensor
    episodes: Episodes
    policy_version: int = 0
    collect_seconds: float = 0.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    scaled_rewards: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """T."""
        return self.rewards.shape[0]

    @property
    def num_envs(self) -> int:
        """N."""
        return self.rewards.shape[1]

    def to(self, device: torch.device) -> "Rollout":
        """Return the rollout with every tensor but the episode statistics on `device`."""
        moved = {
            f.name: tree_map(lambda t: t.to(device, non_blocking=True), value)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | dict)
        }
        return replace(self, **moved)

    def flatten(self) -> Minibatch:
        """Return all T x N rows as one `Minibatch`.

        The scalars of invalid rows are replaced by 0, so that whatever stood there cannot reach a loss or a gradient
        (0 x NaN would).

        Raises:
            ValueError: If advantages and returns have not been set.
        """
        if self.advantages is None or self.returns is None:
            raise ValueError("the rollout has no advantages yet; the stream sets them")

        def flat(x: Tensor) -> Tensor:
            return x.reshape(-1, *x.shape[2:])

        def masked(x: Tensor) -> Tensor:
            return flat(torch.where(self.valid, x, torch.zeros_like(x)))

        return Minibatch(
            observations=tree_map(flat, self.observations),
            actions=flat(self.actions),
            distribution=flat(self.distribution),
            log_probs=masked(self.log_probs),
            values=masked(self.values),
            advantages=masked(self.advantages),
            returns=masked(self.returns),
            weights=flat(self.valid).to(self.log_probs.dtype),
        )


def select(batch: Minibatch, indices: Tensor, scale: Tensor | None = None) -> Minibatch:
    """Return the rows `indices` (B,) of a flat batch, with weights multiplied by `scale` (a tensor of shape ())."""
    rows = Minibatch(*[tree_map(lambda x: x.index_select(0, indices), value) for value in batch])
    return rows if scale is None else rows._replace(weights=rows.weights * scale)


def shuffled_indices(size: int, minibatch_size: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation of `size` rows as (M, B) minibatches.

    Raises:
        ValueError: If `minibatch_size` does not divide `size`.
    """
    if size % minibatch_size:
        raise ValueError(f"a minibatch size of {minibatch_size} does not divide {size} transitions")
    return torch.randperm(size, generator=generator, device=generator.device).view(-1, minibatch_size)
