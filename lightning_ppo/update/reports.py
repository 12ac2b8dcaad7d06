"""What one PPO iteration reports, as means over minibatches and ranks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Minibatch, Rollout
from lightning_ppo.support.distributed import mean_over_ranks, world_size
from lightning_ppo.update.objectives import Scalar, explained_variance, kl_k3, outside_clip_range, variance_sums

LOSSES = ("loss/policy", "loss/value", "loss/entropy")
"""The means that every minibatch reports, by the names under which they are logged; those of loss terms follow."""
MEASURES = ("update/grad_norm", "update/approximate_kl", "update/clip_fraction")
"""What is measured of every minibatch besides."""


class MinibatchReport(NamedTuple):
    """What a minibatch tells of itself, without gradients."""

    means: Tensor
    """(S,): policy loss, value loss, entropy, loss terms."""
    log_ratios: Tensor
    """(B,), log pi(a|s) - log pi_old(a|s), 0 in rows that are no transitions."""


class IterationReport(NamedTuple):
    """An iteration in numbers, the same on all ranks."""

    finite: bool
    """Whether everything learnt from was finite."""
    kl: float
    """Mean exact KL divergence of the behaviour policy from the policy after the last step."""
    env_steps: int
    """Transitions, over all ranks."""
    collect_seconds: float
    metrics: dict[str, float]
    """What is logged, by name."""


def epoch_statistics(
    reports: Sequence[MinibatchReport],
    grad_norms: Sequence[Tensor],
    weights: Tensor,
    clip_range: Scalar,
    clip_range_high: Scalar | None = None,
) -> Tensor:
    """Return an epoch's statistics (M, S): means, then MEASURES, of each of M minibatches.

    Args:
        reports: Of the minibatches.
        grad_norms: Of the minibatches, before clipping.
        weights: (M, B), of the minibatches' rows.
        clip_range: See `outside_clip_range`.
        clip_range_high: See `outside_clip_range`.
    """
    log_ratios = torch.stack([report.log_ratios for report in reports])
    clipped = outside_clip_range(log_ratios, clip_range, clip_range_high)
    means = torch.stack([report.means for report in reports])
    measured = (torch.stack(list(grad_norms)), (kl_k3(log_ratios) * weights).sum(1), (clipped * weights).sum(1))
    return torch.cat((means, torch.stack(measured, 1)), 1)


def learnt_from(names: Sequence[str], entropy_matters: bool, precision: Any) -> list[str]:
    """Return those of the statistics that learning depends on; only they must be finite.

    Args:
        names: Of the statistics.
        entropy_matters: Whether the entropy has a weight in the loss.
        precision: Lightning's plugin; where it scales gradients, an infinite norm is its business: it skips the step.
    """
    skipped = {"update/approximate_kl", "update/clip_fraction"}
    skipped |= set() if entropy_matters else {"loss/entropy"}
    skipped |= set() if getattr(precision, "scaler", None) is None else {"update/grad_norm"}
    return [name for name in names if name not in skipped]


def report_iteration(
    rollout: Rollout,
    batch: Minibatch,
    epochs: Tensor,
    names: Sequence[str],
    divergence: Tensor,
    window: Sequence[float],
    needed: Sequence[str],
) -> IterationReport:
    """Reduce what an iteration measured, with one reduction over the ranks and one transfer to the host.

    Args:
        rollout: What was learnt from.
        batch: Its rows.
        epochs: (E, M, S), S statistics of M minibatches in each of E epochs.
        names: Under which the statistics are logged.
        divergence: (), KL divergence summed over this rank's rows.
        window: Sum of the latest episodes' returns, sum of their lengths, and their number.
        needed: Names of the statistics that must be finite.
    """
    valid = batch.weights > 0
    bad = torch.stack([~epochs[..., names.index(name)].isfinite() for name in needed]).any()
    measured = (divergence, bad, *variance_sums(batch.values[valid], batch.returns[valid]))
    counted = torch.tensor([len(epochs), *window, rollout.collect_seconds], dtype=torch.float64, device=epochs.device)
    local = torch.cat((epochs.mean((0, 1)).double(), torch.stack([x.double() for x in measured]), counted))
    total = mean_over_ranks(local).tolist()
    metrics = dict(zip(names, total, strict=False))
    divergence_sum, bad, *sums = total[len(names) : -5]
    count, returns, lengths, ended, collect_seconds = total[-5:]
    steps = sums[0]
    kl = divergence_sum / max(steps, 1.0 / world_size())
    metrics |= {"update/kl": kl, "update/epochs": count, "update/explained_variance": explained_variance(sums)}
    if ended:
        metrics |= {"rollout/return_mean": returns / ended, "rollout/length_mean": lengths / ended}
    return IterationReport(not bad, kl, round(steps * world_size()), collect_seconds, metrics)
