"""Generalised advantage estimation and advantage normalisation: pure functions of (T, N) tensors."""

import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Rollout
from lightning_ppo.speed import scan, switch
from lightning_ppo.support.distributed import Reduce


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Estimate advantages by GAE(lambda) (Schulman et al. 2016, "Generalized Advantage Estimation", eq. 16).

    An episode's end cuts the recursion; a termination also cuts the bootstrap, a truncation does not.

    Args:
        rewards: (T, N).
        values: (T, N), V(s_t).
        next_values: (T, N), V(s_{t+1}) of the true next observation; may hold anything, NaN too, where terminated.
        terminations: (T, N) bool.
        truncations: (T, N) bool.
        gamma: Discount factor.
        gae_lambda: Lambda.

    Returns:
        Advantages and value targets (advantage + value), each (T, N), without a graph.

    Raises:
        ValueError: If the shapes differ or are not (T, N).
    """
    tensors = (rewards, values, next_values, terminations, truncations)
    if rewards.dim() != 2 or any(t.shape != rewards.shape for t in tensors):
        raise ValueError(f"expected five tensors of one shape (T, N), got {[tuple(t.shape) for t in tensors]}")
    ended = terminations | truncations
    with torch.no_grad():
        # delta_t = r_t + gamma V(s_{t+1}) - V(s_t), where a terminal state is worth nothing
        bootstrap = torch.where(terminations, torch.zeros_like(next_values), next_values)
        deltas = rewards + gamma * bootstrap - values
        if switch.is_on() and scan.pays(len(deltas)):
            advantages = scan.sums_of_the_future(deltas, ended, gamma * gae_lambda)
        else:
            advantages = recursive_advantages(deltas, ended, gamma * gae_lambda)
        return advantages, advantages + values


def recursive_advantages(deltas: Tensor, ended: Tensor, decay: float) -> Tensor:
    """Return A_t = delta_t + gamma lambda A_{t+1}, (T, N), by recursion from the last step to the first."""
    delta, ends = deltas.unbind(), ended.unbind()
    advantages = list(delta)  # A_{T-1} = delta_{T-1}
    for t in reversed(range(len(delta) - 1)):
        # A_t = delta_t + gamma lambda A_{t+1} within an episode, A_t = delta_t at its end
        advantages[t] = torch.where(ends[t], delta[t], delta[t] + decay * advantages[t + 1])
    return torch.stack(advantages)


def following_values(values: Tensor, boundary_values: Tensor, boundary_rows: Tensor) -> Tensor:
    """Return the value of each row's true next observation, (T, N).

    Args:
        values: (T, N).
        boundary_values: (K,), values of the next observations that are not those of the following row.
        boundary_rows: (K,) int64, the row t x N + n that each of them follows.
    """
    following = torch.cat((values[1:], values[-1:])).flatten()
    return following.index_copy(0, boundary_rows, boundary_values.to(values.dtype)).view(values.shape)


def normalize_advantages(advantages: Tensor, valid: Tensor, reduce: Reduce = lambda x: x) -> Tensor:
    """Shift and scale advantages to mean 0 and standard deviation 1 over the valid rows of all ranks.

    Args:
        advantages: (T, N).
        valid: (T, N) bool; the other rows do not count and come out as 0.
        reduce: Sums a float64 tensor over all ranks; the identity on one rank.
    """
    rows = torch.where(valid, advantages, torch.zeros_like(advantages)).double()
    count, total = reduce(torch.stack((valid.sum().double(), rows.sum())))
    mean = total / count
    deviations = torch.where(valid, rows - mean, torch.zeros_like(rows))
    variance = reduce(deviations.square().sum().reshape(1))[0] / (count - 1.0).clamp(min=1.0)
    return (deviations / (variance.sqrt() + 1e-8)).to(advantages.dtype)


def estimate_advantages(
    rollout: Rollout, values: Tensor, next_values: Tensor, normalize: bool, reduce: Reduce = lambda x: x
) -> tuple[Tensor, Tensor]:
    """Return advantages and value targets of a rollout under the given values, each (T, N).

    Args:
        rollout: Its scaled rewards, episode ends and discounting are used.
        values: (T, N), V(s_t), of the critic that collected or of a later one.
        next_values: (T, N), V(s_{t+1}).
        normalize: Whether to normalise the advantages.
        reduce: Sums a float64 tensor over all ranks.
    """
    assert rollout.scaled_rewards is not None
    advantages, returns = generalized_advantages(
        rollout.scaled_rewards,
        values,
        next_values,
        rollout.terminations,
        rollout.truncations,
        gamma=rollout.gamma,
        gae_lambda=rollout.gae_lambda,
    )
    return normalize_advantages(advantages, rollout.valid, reduce) if normalize else advantages, returns


def discounted_sums(rewards: Tensor, ended: Tensor, running: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the discounted sums G_t = r_t + gamma G_{t-1} within each episode, and where they stand afterwards.

    A sum includes the last reward of its episode and restarts after it.

    Args:
        rewards: (T, N).
        ended: (T, N) bool, the episode ended at this step.
        running: (N,) float64, the sums before the first step.
        gamma: Discount factor in [0, 1].

    Returns:
        Sums (T, N) and the running sums (N,) after the last step, float64.

    Raises:
        ValueError: If `gamma` lies outside [0, 1].
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    rewards = rewards.double()
    if switch.is_on() and scan.pays(len(rewards)):
        sums = scan.sums_of_the_past(rewards, ended, running, gamma)
    else:
        sums = recursive_sums(rewards, ended, running, gamma)
    return sums, torch.where(ended[-1], 0.0, sums[-1])


def recursive_sums(rewards: Tensor, ended: Tensor, running: Tensor, gamma: float) -> Tensor:
    """Return G_t = r_t + gamma G_{t-1}, (T, N), by recursion from the first step to the last."""
    sums = []
    for reward, ends in zip(rewards.unbind(), ended.unbind(), strict=True):
        sums.append(reward + gamma * running)  # G_t = r_t + gamma G_{t-1}
        running = torch.where(ends, 0.0, sums[-1])  # nothing of an episode goes into the next
    return torch.stack(sums)
