"""The end of an iteration: what was measured is checked, counted and logged, and what follows from it is set."""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Minibatch, Rollout
from lightning_ppo.speed import shortcuts, switch
from lightning_ppo.support.distributed import sum_over_ranks
from lightning_ppo.update.checks import non_finite
from lightning_ppo.update.minibatch_update import MinibatchUpdate, Snapshot
from lightning_ppo.update.reports import IterationReport, learnt_from, report_iteration

if TYPE_CHECKING:
    from lightning_ppo.update.ppo import PPO


@torch.no_grad()
def finish_iteration(
    module: "PPO",
    rollout: Rollout,
    batch: Minibatch,
    epochs: Tensor,
    update: MinibatchUpdate,
    before: Snapshot,
    started: float,
) -> None:
    """Finish an iteration after its last optimizer step.

    Args:
        module: The module.
        rollout: The rollout of the iteration.
        batch: Its rows.
        epochs: (E, M, S), S statistics of M minibatches in each of E epochs.
        update: Made the steps.
        before: Buffers as they were before the iteration.
        started: When the iteration began, by `time.perf_counter`.

    Raises:
        NonFiniteError: If a loss or gradient is NaN or infinite; buffers are restored first.
    """
    module.recent_episodes.add(rollout.episodes)
    report = report_iteration(module, rollout, batch, epochs)
    if not report.finite:
        before.restore()
        raise non_finite(epochs, module.statistics, learnt_from(module), module.iterations, module.env_steps)
    module.policy.version += 1
    module.budget.count(report.env_steps, module.trainer)
    _decay_std(module)
    set_noise_color(module)
    module.action_masks = rollout.action_masks is not None
    module.policy.update_statistics(rollout, sum_over_ranks)
    module.compile_seconds += update.latest_compile_seconds
    module.collect_seconds = report.collect_seconds
    module.update_seconds = time.perf_counter() - started - update.latest_compile_seconds
    metrics = _metrics(module, rollout, report)
    module.fit_optimizers.steer_rates(module.steered_rate(), module.progress, report.kl)
    module.objective.after_iteration(report.kl, module.coefficients.values)
    if switch.is_on():
        shortcuts.log_metrics(module, metrics)
    else:
        module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)
    module.fit_optimizers.after_iteration(module, metrics)
    module.budget.stop_if_spent(module.trainer, rollout.num_steps * rollout.num_envs)


def _decay_std(module: "PPO") -> None:
    """Lower the standard deviation to the current value of its schedule, before the next rollout."""
    # the bound of a trust region is one on everything that the policy moves by
    due = 0.0 if module.trust_region else module.coefficients.schedules["std_decay"](module.progress)
    module.policy.head.shrink(due - module.std_decay)
    module.std_decay = due


def set_noise_color(module: "PPO") -> None:
    """Set the colour of the noise to where its schedule now is, before anyone acts."""
    module.policy.head.set_noise_color(module.coefficients.schedules["noise_color"](module.progress))


def _metrics(module: "PPO", rollout: Rollout, report: IterationReport) -> dict[str, float]:
    """Return what is logged of an iteration, by name: the report, rates, times and coefficients.

    Args:
        module: It has counted the iteration, and not yet changed what depends on its KL divergence.
        rollout: The rollout of the iteration.
        report: Of the iteration.
    """
    seconds = module.collect_seconds + module.update_seconds
    metrics = report.metrics | {
        **module.fit_optimizers.rates(),
        "rollout/policy_lag": float(module.policy.version - 1 - rollout.policy_version),
        "time/env_steps_per_second": report.env_steps / seconds,
        "time/collect_share": module.collect_seconds / seconds,
        "time/update_share": module.update_seconds / seconds,
        "step": float(module.env_steps),
    }
    discounts = {"gamma": rollout.gamma, "gae_lambda": rollout.gae_lambda}
    coefficients = discounts | module.coefficients.values | module.objective.coefficients()
    metrics |= {f"update/{name}": value for name, value in coefficients.items()}
    if module.trust_region is not None:
        last = module.trust_region.last
        metrics |= {"update/step_fraction": last.step_fraction, "update/improvement": last.improvement}
    return metrics
