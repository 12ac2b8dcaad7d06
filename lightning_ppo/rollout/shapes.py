"""The two shapes data takes: a time-major `Rollout` (T, N, ...) and a flat `Minibatch` (B, ...)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_ppo.support.tree import take_rows, tree_map

Observations = Tensor | dict[str, Any] | tuple[Any, ...]
"""A tensor, or nested dicts and tuples of tensors that share their leading dimensions."""


_NOTHING: dict[str, Tensor] = {}
_ESTIMATED_FROM = ("rewards", "scaled_rewards", "next_values", "terminations", "truncations")


class Episodes(NamedTuple):
    """Finished episodes in numbers, each tensor of shape (E,), on the CPU, float64 but for the lengths, int64."""

    returns: Tensor
    """Undiscounted."""
    lengths: Tensor
    successes: Tensor = torch.empty(0, dtype=torch.float64)
    """Whether they reached their goals, NaN where the environment does not say; empty where nobody asked."""
    info_sums: dict[str, Tensor] = _NOTHING
    """Sums over the steps of what `env.log_info` names, NaN where it was never told."""
    info_steps: dict[str, Tensor] = _NOTHING
    """Steps that told it."""


class Minibatch(NamedTuple):
    """B transitions; every field without a shape of its own is (B,).

    For a recurrent policy they are S whole sequences of L = B / S steps, one after the other.
    """

    observations: Observations
    """(B, ...)."""
    actions: Tensor
    """(B, ...)."""
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
    action_masks: Tensor | None = None
    """(B, M), see `Rollout.action_masks`."""
    starts: Tensor | None = None
    """Whether an episode begins with the row, where the policy is recurrent."""
    states: Tensor | None = None
    """(S, H), recurrent state before the first step of each sequence."""


@dataclass
class Rollout:
    """T steps of N environments, time-major.

    Attributes:
        observations: (T, N, ...), inputs of the policy; images (C, H, W) may have their channels last in memory.
        actions: (T, N, ...), as sampled, before any clipping to the action space.
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
        infos: What `env.log_info` names, each (T, N), NaN where the environment has not told it.
        policy_version: Number of policy updates before the rollout was collected.
        collect_seconds: Wall-clock time of collecting, or of waiting for a rollout that is collected during the update.
        action_masks: (T, N, M) bool, which choices of the discrete actions were allowed; None if all of them.
        starts: (T, N) bool, the observation is the first of an episode; set where the policy is recurrent, else None.
        states: (T, N, H), recurrent state before each step, not yet reset where an episode starts, or None.
        boundary_states: (K, H), recurrent states that go with the boundary observations, or None.
        gamma: Discount factor, set by the stream as are all that follow.
        gae_lambda: Lambda of GAE.
        scaled_rewards: (T, N), from which advantages are estimated.
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
    infos: dict[str, Tensor] = field(default_factory=dict)
    policy_version: int = 0
    collect_seconds: float = 0.0
    action_masks: Tensor | None = None
    starts: Tensor | None = None
    states: Tensor | None = None
    boundary_states: Tensor | None = None
    gamma: float = 0.995
    gae_lambda: float = 0.95
    scaled_rewards: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def __post_init__(self) -> None:
        self._estimated_from: dict[str, tuple[Tensor, int]] = {}

    @property
    def num_steps(self) -> int:
        """T."""
        return self.rewards.shape[0]

    @property
    def num_envs(self) -> int:
        """N."""
        return self.rewards.shape[1]

    def with_infos(self, names: Sequence[str]) -> "Rollout":
        """Return the rollout with infos of these names in this order, whether they were told or not."""
        untold = torch.full_like(self.rewards, torch.nan)
        returns = self.episodes.returns
        sums = {name: self.episodes.info_sums.get(name, torch.full_like(returns, torch.nan)) for name in names}
        steps = {name: self.episodes.info_steps.get(name, torch.zeros_like(returns)) for name in names}
        infos = {name: self.infos.get(name, untold) for name in names}
        return replace(self, infos=infos, episodes=self.episodes._replace(info_sums=sums, info_steps=steps))

    def final_observations(self) -> Observations:
        """Return the last observations (E, ...) of the episodes that ended within the rollout."""
        ended = (self.valid & (self.terminations | self.truncations)).flatten()[self.boundary_rows]
        fillers = ~self.valid[1:]  # those of the first row end episodes of the rollout before

        def final(leaf: Tensor, boundary_leaf: Tensor) -> Tensor:
            return torch.cat((boundary_leaf[ended], leaf[1:][fillers]))

        return tree_map(final, self.observations, self.boundary_observations)

    def to(self, device: torch.device) -> "Rollout":
        """Return the rollout with every tensor but the episode statistics on `device`."""
        moved = {
            f.name: tree_map(lambda t: t.to(device, non_blocking=True), value)
            for f in fields(self)
            if f.name != "episodes" and isinstance(value := getattr(self, f.name), Tensor | dict | tuple)
        }
        return replace(self, **moved).as_estimated()

    def as_estimated(self) -> "Rollout":
        """Return this rollout; from now on `changed` tells what no longer is what advantages were estimated from."""
        tensors = {name: getattr(self, name) for name in _ESTIMATED_FROM}
        self._estimated_from = {name: (x, _version(x)) for name, x in tensors.items() if isinstance(x, Tensor)}
        return self

    def changed(self) -> list[str]:
        """Return the names of what was replaced or written to since advantages were estimated from it."""
        return [
            name
            for name, (tensor, version) in self._estimated_from.items()
            if getattr(self, name) is not tensor or _version(tensor) != version
        ]

    def flatten(self, sequence_length: int = 1) -> Minibatch:
        """Return all T x N rows as one `Minibatch`, sequences of one environment's consecutive steps kept together.

        The scalars of invalid rows are replaced by 0, so that whatever stood there cannot reach a loss or a gradient
        (0 x NaN would).

        Args:
            sequence_length: L, which divides T; 1 leaves the rows in their order, time-major.

        Raises:
            ValueError: If advantages and returns have not been set.
        """
        if self.advantages is None or self.returns is None:
            raise ValueError("the rollout has no advantages yet; the stream sets them")

        def flat(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, sequence_length)).transpose(1, 2).flatten(0, 2)

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
            action_masks=None if self.action_masks is None else flat(self.action_masks),
            starts=None if self.starts is None else flat(self.starts),
            states=None if self.states is None else self.states[::sequence_length].flatten(0, 1),
        )

    def unflatten(self, x: Tensor, sequence_length: int = 1) -> Tensor:
        """Return values (T x N, ...) in the order of `flatten` as (T, N, ...)."""
        return x.unflatten(0, (-1, self.num_envs, sequence_length)).transpose(1, 2).flatten(0, 1)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to, 0 for one that does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _map(function: Callable[[Tensor], Tensor], batch: Minibatch) -> Minibatch:
    values: list[Any] = [None if value is None else tree_map(function, value) for value in batch]
    return Minibatch(*values)


def split(batch: Minibatch, size: int) -> list[Minibatch]:
    """Return a flat batch in pieces of at most `size` rows; sequences of a recurrent policy are kept whole."""
    length = 1 if batch.states is None else len(batch.weights) // len(batch.states)
    count = max(1, size // length)
    pieces = []
    for first in range(0, len(batch.weights) // length, count):
        rows = slice(first * length, (first + count) * length)
        states = None if batch.states is None else batch.states[first : first + count]
        pieces.append(_map(itemgetter(rows), batch._replace(states=None))._replace(states=states))
    return pieces


def select(batch: Minibatch, indices: Tensor, scale: Tensor | None = None) -> Minibatch:
    """Return the rows `indices` (B,) of a flat batch, with weights multiplied by `scale` (a tensor of shape ()).

    Of a batch with recurrent states the indices are those of whole sequences.
    """
    states = batch.states
    if states is not None:
        length = len(batch.weights) // len(states)
        states = states.index_select(0, indices[::length] // length)
    minibatch = _map(lambda x: take_rows(x, indices), batch._replace(states=None))._replace(states=states)
    return minibatch if scale is None else minibatch._replace(weights=minibatch.weights * scale)


def shuffled_indices(size: int, minibatch_size: int, generator: torch.Generator, sequence_length: int = 1) -> Tensor:
    """Return a random permutation of `size` rows as (M, B) minibatches, sequences of consecutive rows kept together.

    Raises:
        ValueError: If `minibatch_size` does not divide `size`, or `sequence_length` does not divide `minibatch_size`.
    """
    for part, whole in ((sequence_length, minibatch_size), (minibatch_size, size)):
        if whole % part:
            raise ValueError(f"a size of {part} does not divide {whole} transitions")
    order = torch.randperm(size // sequence_length, generator=generator, device=generator.device)
    rows = order.unsqueeze(1) * sequence_length + torch.arange(sequence_length, device=generator.device)
    return rows.view(-1, minibatch_size)
