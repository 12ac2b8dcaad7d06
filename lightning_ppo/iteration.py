"""What one PPO iteration reports, as means over minibatches and ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ppo.distributed import mean_over_ranks, world_size
from lightning_ppo.objectives import explained_variance
from lightning_ppo.rollout import Minibatch, Rollout

STATISTICS = (
    *("loss/policy", "loss/value", "loss/entropy"),
    *("update/kl", "update/approximate_kl", "update/clip_fraction", "update/grad_norm"),
)
"""What every minibatch reports, in this order, by the names under which it is logged; loss terms before the last."""


class IterationReport(NamedTuple):
    """An iteration in numbers, the same on all ranks."""

    finite: bool
    """Whether every loss and gradient was finite."""
    kl: float
    """Mean exact KL divergence of the behaviour policy from the policy after the last step."""
    env_steps: int
    """Transitions, over all ranks."""
    collect_seconds: float
    metrics: dict[str, float]
    """What is logged, by name."""


def report_iteration(
    rollout: Rollout,
    batch: Minibatch,
    epochs: Tensor,
    names: Sequence[str],
    divergence: Tensor,
    window: Sequence[float],
    check_gradients: bool = True,
) -> IterationReport:
    """Reduce what an iteration measured, with one reduction over the ranks and one transfer to the host.

    Args:
        rollout: What was learnt from.
        batch: Its rows.
        epochs: (E, M, S), S statistics of M minibatches in each of E epochs; the last is the gradient norm.
        names: Under which the statistics are logged.
        divergence: (), mean KL divergence over this rank's rows.
        window: Sum of the latest episodes' returns, sum of their lengths, and their number.
        check_gradients: Whether an infinite gradient counts as not finite.
    """
    valid = batch.weights > 0
    explained = explained_variance(batch.values[valid], batch.returns[valid])
    checked = epochs if check_gradients else epochs[..., :-1]
    measured = (divergence, explained, (~torch.isfinite(checked)).any(), valid.sum())
    counted = torch.tensor([len(epochs), *window, rollout.collect_seconds], dtype=torch.float64, device=epochs.device)
    local = torch.cat((epochs.mean((0, 1)).double(), torch.stack([x.double() for x in measured]), counted))
    total = mean_over_ranks(local).tolist()
    metrics = dict(zip(names, total, strict=False))
    kl, explained_mean, bad, steps, count, returns, lengths, ended, collect_seconds = total[len(names) :]
    metrics |= {"update/kl": kl, "update/epochs": count, "update/explained_variance": explained_mean}
    if ended:
        metrics |= {"rollout/return_mean": returns / ended, "rollout/length_mean": lengths / ended}
    return IterationReport(not bad, kl, round(steps * world_size()), collect_seconds, metrics)
