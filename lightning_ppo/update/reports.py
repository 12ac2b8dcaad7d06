"""What one PPO iteration reports, as means over minibatches and ranks."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Minibatch, Rollout
from lightning_ppo.support.distributed import mean_over_ranks, world_size
from lightning_ppo.update.objectives import explained_variance, kl_k3, outside_clip_range, variance_sums

if TYPE_CHECKING:
    from lightning_ppo.update.ppo import PPO

LOSSES = ("loss/policy", "loss/value", "loss/entropy")
"""The means that every minibatch reports, by the names under which they are logged; those of loss terms follow."""
MEASURES = ("update/grad_norm", "update/approximate_kl", "update/clip_fraction")
"""The other metrics of every minibatch."""


class MinibatchReport(NamedTuple):
    """Results of a minibatch, without gradients."""

    means: Tensor
    """(S,): policy loss, value loss, entropy, loss terms."""
    log_ratios: Tensor
    """(B,), log pi(a|s) - log pi_old(a|s), 0 in rows that are no transitions."""


def joined(reports: Sequence[MinibatchReport]) -> MinibatchReport:
    """Return the report of a minibatch from those of its pieces, whose weights sum to 1 together."""
    if len(reports) == 1:
        return reports[0]
    means, log_ratios = zip(*reports, strict=True)
    return MinibatchReport(torch.stack(means).sum(0), torch.cat(log_ratios))


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
    """The logged metrics, by name."""


def epoch_statistics(
    reports: Sequence[MinibatchReport],
    grad_norms: Sequence[Tensor],
    weights: Tensor,
    coefficients: Mapping[str, Tensor],
) -> Tensor:
    """Return an epoch's statistics (M, S): means, then MEASURES, of each of M minibatches.

    Args:
        reports: Of the minibatches.
        grad_norms: Of the minibatches, before clipping.
        weights: (M, B), of the minibatches' rows.
        coefficients: The clip range among them.
    """
    log_ratios = torch.stack([report.log_ratios for report in reports])
    clipped = outside_clip_range(log_ratios, coefficients["clip_range"], coefficients.get("clip_range_high"))
    means = torch.stack([report.means for report in reports])
    measured = (torch.stack(list(grad_norms)), (kl_k3(log_ratios) * weights).sum(1), (clipped * weights).sum(1))
    return torch.cat((means, torch.stack(measured, 1)), 1)


def learnt_from(module: "PPO") -> list[str]:
    """Return those of a module's statistics that learning depends on; only they must be finite."""
    skipped = {"update/approximate_kl", "update/clip_fraction"}
    if not module.entropy_matters:
        skipped.add("loss/entropy")
    if getattr(module.trainer.precision_plugin, "scaler", None) is not None:
        skipped.add("update/grad_norm")  # where gradients are scaled, the step is skipped if their norm is infinite
    return [name for name in module.statistics if name not in skipped]


def report_iteration(module: "PPO", rollout: Rollout, batch: Minibatch, epochs: Tensor) -> IterationReport:
    """Reduce what an iteration measured, with one reduction over the ranks and one transfer to the host.

    Args:
        module: Its recent episodes include those of the rollout.
        rollout: The rollout of the iteration.
        batch: Its rows.
        epochs: (E, M, S), S statistics of M minibatches in each of E epochs.
    """
    names, valid = module.statistics, batch.weights > 0
    bad = torch.stack([~epochs[..., names.index(name)].isfinite() for name in learnt_from(module)]).any()
    measured = (module.divergence(batch), bad, *variance_sums(batch.values[valid], batch.returns[valid]))
    infos = tuple(rollout.infos)
    counts = [len(epochs), *module.recent_episodes.sums(), rollout.collect_seconds]
    told = [*module.recent_episodes.told(infos)]
    counted = torch.tensor(counts + told, dtype=torch.float64, device=epochs.device)
    measurements = torch.stack([x.double() for x in measured])
    local = torch.cat((epochs.mean((0, 1)).double(), measurements, counted, *_steps_told(rollout)))
    total = mean_over_ranks(local).tolist()
    metrics = dict(zip(names, total, strict=False))
    found = iter(total[len(names) :])
    divergence_sum, bad, *sums = itertools.islice(found, len(measured))
    count, returns, lengths, ended, collect_seconds = itertools.islice(found, len(counts))
    steps = sums[0]
    kl = divergence_sum / max(steps, 1.0 / world_size())
    metrics |= {"update/kl": kl, "update/epochs": count, "update/explained_variance": explained_variance(sums)}
    if ended:
        metrics |= {"rollout/return_mean": returns / ended, "rollout/length_mean": lengths / ended}
    keys = ["rollout/success_rate", *(f"rollout/info/{name}_per_episode" for name in infos)]
    for key in (*keys, *(f"rollout/info/{name}_per_step" for name in infos)):
        value, number = next(found), next(found)
        if number:
            metrics[key] = value / number
    return IterationReport(not bad, kl, round(steps * world_size()), collect_seconds, metrics)


def _steps_told(rollout: Rollout) -> list[Tensor]:
    """Return sum and number of what the steps of a rollout have told, (2,) for each of its infos."""
    return [
        torch.stack((values.double().nansum(), (~values.isnan()).sum().double())) for values in rollout.infos.values()
    ]
