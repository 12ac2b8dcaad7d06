"""Outputs of a policy for whole rollouts and large batches, computed in pieces that fit into memory."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_ppo.policy.actor_critic import ActorCritic, Evaluation
from lightning_ppo.policy.modes import eval_mode
from lightning_ppo.rollout.advantages import estimate_advantages, following_values
from lightning_ppo.rollout.shapes import Minibatch, Observations, Rollout, split
from lightning_ppo.support.distributed import sum_over_ranks
from lightning_ppo.support.tree import tree_leaves, tree_map

EVALUATION_ROWS = 8192
"""Rows that go through the networks at once where a whole rollout does, at most."""
EVALUATION_NUMBERS = 2**23
"""Numbers in the observations and recurrent states of these rows, at most; of Atari's pictures 297 rows.

On a CPU 1,024 at once take 1.7 times as long, in memory that the system hands out anew each time."""

EVALUATION_WORK = 2**32
"""Rows x parameters, at most: where one row is much work, more at once are not faster and only take memory."""


@torch.no_grad()
def evaluate_rollout(policy: ActorCritic, rollout: Rollout) -> tuple[Evaluation, Tensor]:
    """Return the policy's outputs for a rollout, each (T, N, ...), and values of its boundary observations (K,).

    Every row is evaluated by itself, from the recurrent state in which it was acted on.
    """
    zeros = torch.zeros_like(rollout.rewards)
    rows = replace(rollout, distribution=zeros, log_probs=zeros, values=zeros, advantages=zeros, returns=zeros)
    batch = rows.flatten()
    pieces = [policy.evaluate(piece) for piece in split(batch, _rows_at_once(policy, batch.observations, batch.states))]
    joined = (torch.cat(parts).unflatten(0, zeros.shape) for parts in zip(*pieces, strict=True))
    return Evaluation(*joined), _boundary_values(policy, rollout)


@torch.no_grad()
def rollout_values(policy: ActorCritic, rollout: Rollout, sequence_length: int = 1) -> tuple[Tensor, Tensor]:
    """Return the current values of a rollout's observations (T, N) and boundary observations (K,), in eval mode."""
    batch = rollout.flatten(sequence_length)
    with eval_mode(policy):
        values = _values(policy, batch.observations, batch.states, batch.starts)
        return rollout.unflatten(values, sequence_length), _boundary_values(policy, rollout)


@torch.no_grad()
def estimated_again(policy: ActorCritic, rollout: Rollout, sequence_length: int, normalize: bool) -> Rollout:
    """Return a rollout with advantages and value targets of the current critic; all ranks call it."""
    values, boundary_values = rollout_values(policy, rollout, sequence_length)
    next_values = following_values(values, boundary_values, rollout.boundary_rows)
    advantages, returns = estimate_advantages(rollout, values, next_values, normalize, sum_over_ranks)
    return replace(rollout, advantages=advantages, returns=returns)


@torch.no_grad()
def divergences(policy: ActorCritic, minibatch: Minibatch) -> Tensor:
    """Return the exact KL divergence (B,) of the behaviour policy from the current one, in eval mode."""
    with eval_mode(policy):
        found = []
        for piece in split(minibatch, _rows_at_once(policy, minibatch.observations, minibatch.states)):
            now = policy.distribution(piece.observations, piece.action_masks, piece.states, piece.starts)
            found.append(policy.head.kl(piece.distribution, now))
        return torch.cat(found)


def _boundary_values(policy: ActorCritic, rollout: Rollout) -> Tensor:
    starts = torch.zeros_like(rollout.boundary_rows, dtype=torch.bool)
    return _values(policy, rollout.boundary_observations, rollout.boundary_states, starts)


def _values(policy: ActorCritic, observations: Observations, states: Tensor | None, starts: Tensor | None) -> Tensor:
    """Return values (B,) of observations (B, ...), in whole sequences; see `Minibatch`."""
    count = len(tree_leaves(observations)[0])
    sequences = count if states is None else len(states)
    length = max(1, count // max(1, sequences))
    step = max(1, _rows_at_once(policy, observations, states) // length)
    chunks = []
    for first in range(0, sequences, step):
        rows = slice(first * length, (first + step) * length)
        chunk = tree_map(lambda x, rows=rows: x[rows], observations)
        chosen = None if states is None else states[first : first + step]
        chunks.append(policy.value(chunk, chosen, None if starts is None else starts[rows]))
    return torch.cat(chunks)


def _rows_at_once(policy: ActorCritic, observations: Observations, states: Tensor | None) -> int:
    leaves = tree_leaves(observations)
    rows, numbers = len(leaves[0]), sum(x.numel() for x in (*leaves, *([] if states is None else [states])))
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    most = policy.rows_at_once or EVALUATION_ROWS
    return max(1, min(most, EVALUATION_NUMBERS * rows // max(1, numbers), EVALUATION_WORK // max(1, parameters)))
