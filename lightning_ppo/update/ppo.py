"""The LightningModule: one training step is one PPO iteration over a rollout."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic, Evaluation, eval_mode
from lightning_ppo.policy.scoring import divergences, rollout_values
from lightning_ppo.rollout.advantages import estimate_advantages, following_values
from lightning_ppo.rollout.shapes import Minibatch, Rollout, select, shuffled_indices
from lightning_ppo.settings.algorithm import (
    NormalizeConfig,
    OptimizerConfig,
    UpdateConfig,
    resolve_epochs,
    resolve_sequence_length,
)
from lightning_ppo.settings.class_path import as_path
from lightning_ppo.settings.loading import as_section, to_container
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.speed.shortcuts import log_metrics
from lightning_ppo.support.distributed import join_ranks, mean_over_ranks, sum_over_ranks
from lightning_ppo.support.spaces import space_from_spec, space_to_spec
from lightning_ppo.update.checks import check_fit, check_trust_region, non_finite
from lightning_ppo.update.fit_optimizers import FitOptimizers
from lightning_ppo.update.loss_terms import make_loss_terms
from lightning_ppo.update.minibatch_update import MinibatchUpdate, Snapshot
from lightning_ppo.update.objectives import masked_log_ratios, value_loss, weighted_sum
from lightning_ppo.update.optimizers import make_optimizer
from lightning_ppo.update.policy_objectives import PolicyGradient, PolicyTerms, make_objective
from lightning_ppo.update.reports import (
    LOSSES,
    MEASURES,
    MinibatchReport,
    epoch_statistics,
    learnt_from,
    report_iteration,
)
from lightning_ppo.update.trainer_checks import check_trainer
from lightning_ppo.update.training_state import TrainingState
from lightning_ppo.update.trust_region import TrustRegion, set_gradients


class PPO(FitOptimizers, TrainingState):  # type: ignore[misc]
    """Proximal Policy Optimization (Schulman et al. 2017, "Proximal Policy Optimization Algorithms").

    Its batches are the rollouts of `RolloutDataModule`. To change the algorithm, override `policy_loss`,
    `minibatch_loss` or `configure_optimizers`.

    Args:
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        objective: Name of the policy objective, or a `PolicyObjective` as class path, class, or class_path with
            init_args.
        update: Settings of the `update` section, as `UpdateConfig` or a mapping of its fields.
        optimizer: Settings of the `optimizer` section.
        policy: Settings of the `policy` section.
        normalize: Settings of the `normalize` section.
        total_env_steps: Training stops before this many environment steps over all ranks would be exceeded, and
            schedules reach their end there. None leaves the end to the Trainer.
        compile: Compile forward and backward of the minibatch loss into one graph.
        loss_terms: Losses added to that of the objective (see `loss_terms`).

    Raises:
        ConfigError: If a setting is unknown or out of range.
        UnsupportedSpaceError: If no network or action head handles a space.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space | dict[str, Any],
        action_space: gymnasium.Space | dict[str, Any],
        *,
        objective: Any = "clip",
        update: UpdateConfig | Mapping[str, Any] | None = None,
        optimizer: OptimizerConfig | Mapping[str, Any] | None = None,
        policy: PolicyConfig | Mapping[str, Any] | None = None,
        normalize: NormalizeConfig | Mapping[str, Any] | None = None,
        total_env_steps: int | None = None,
        compile: bool = False,
        loss_terms: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        objective = as_path(objective)
        given = as_section(UpdateConfig, update, "update")
        epochs = resolve_epochs(objective, given)
        made = make_objective(objective, given)
        if isinstance(made, PolicyGradient):  # one that is derived from it has no ratio either
            epochs = resolve_epochs("policy_gradient", given)
        self.update_settings = replace(given, epochs=epochs)
        self.optimizer_settings = as_section(OptimizerConfig, optimizer, "optimizer")
        policy_settings = as_section(PolicyConfig, policy, "policy")
        normalize_settings = as_section(NormalizeConfig, normalize, "normalize")
        self.observation_space = space_from_spec(observation_space)
        self.action_space = space_from_spec(action_space)
        self.policy = ActorCritic(self.observation_space, self.action_space, policy_settings, normalize_settings)
        self.save_hyperparameters(
            {
                "observation_space": space_to_spec(self.observation_space),
                "action_space": space_to_spec(self.action_space),
                "objective": objective,
                "update": to_container(self.update_settings),
                "optimizer": to_container(self.optimizer_settings),
                "policy": to_container(policy_settings),
                "normalize": to_container(normalize_settings),
                "total_env_steps": total_env_steps,
                "compile": compile,
                "loss_terms": to_container(loss_terms),
            },
            logger=False,
        )
        self.total_env_steps = total_env_steps
        self.compile_update = compile
        self.minibatch_update: MinibatchUpdate | None = None
        self.objective = made
        self._trust_region: TrustRegion | None = None
        terms, term_weights = make_loss_terms(loss_terms, self.policy)
        if self.objective.trust_region:
            check_trust_region(self.update_settings, self.policy, compile, terms)
            region = to_container(self.update_settings.trust_region)
            self._trust_region = TrustRegion(self.policy.parameters(), **region, average=mean_over_ranks)
        self.loss_terms = nn.ModuleDict(terms)
        self.statistics = (*LOSSES, *(f"loss/{name}" for name in terms), *MEASURES)
        self.coefficients = self.update_settings.schedules()
        self.coefficients |= {f"{name}_weight": weight for name, weight in term_weights.items()}

        self.collect_seconds = self.update_seconds = 0.0
        """Time of the latest iteration."""
        self.compile_seconds = 0.0
        """Time spent compiling, not counted as updating."""
        self._current: dict[str, Tensor] = {}
        self._values: dict[str, float] = {}
        self._entropy_matters = self.coefficients["entropy_coefficient"] != Schedule()

    # ---------------------------------------------------------------- the update

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Run one PPO iteration: epochs of shuffled minibatches over the rollout.

        Raises:
            NonFiniteError: If a loss or gradient is NaN or infinite; weights and optimizer are put back first.
        """
        started = time.perf_counter()
        settings = self.update_settings
        size, length = rollout.num_steps * rollout.num_envs, self.sequence_length(rollout.num_steps)
        batch = rollout.flatten(length)
        self._apply_schedules()
        update = self._update()
        update.prepare(batch, settings.minibatch_size)
        before = Snapshot((*self.parameters(), *self.buffers()), self.fit_optimizers.optimizers)
        if self._trust_region is not None:
            whole = batch._replace(weights=batch.weights / mean_over_ranks(batch.weights.sum()))
            with eval_mode(self.policy):
                self._trust_region.step(lambda: self.constrained_loss(whole))
        shuffle = self.shuffle_generator()
        epochs: list[Tensor] = []
        for epoch in range(settings.epochs or 1):
            if epoch > 0 and settings.recompute_advantages:
                batch = self._estimate_again(rollout)
            indices = shuffled_indices(size, settings.minibatch_size, shuffle, length)
            # a loss is a mean over the valid rows of a minibatch on all ranks
            weights = batch.weights[indices]
            scales = mean_over_ranks(weights.sum(1)).clamp(min=1.0).reciprocal()
            reports, grad_norms = [], []
            for rows, scale in zip(indices.unbind(), scales.unbind(), strict=True):
                reports.append(self._backward(batch, rows, scale))
                update.step()
                grad_norms.append(self._grad_norm)
            bounds = self._current["clip_range"], self._current.get("clip_range_high")
            epochs.append(epoch_statistics(reports, grad_norms, weights * scales.unsqueeze(1), *bounds))
            if settings.target_kl is not None:
                divergence, rows = mean_over_ranks(torch.stack((self._divergence(batch), batch.weights.sum())))
                if divergence > settings.target_kl * rows:
                    break
        update.release()
        self._finish(rollout, batch, torch.stack(epochs), before, started)

    def sequence_length(self, num_steps: int) -> int:
        """Return L, the consecutive steps that stay together in minibatches of rollouts of T steps."""
        return resolve_sequence_length(num_steps, self.update_settings, self.policy.state_size > 0)

    def _divergence(self, batch: Minibatch) -> Tensor:
        """Return the exact KL divergence of the behaviour policy from the current one, summed over this rank's rows."""
        return weighted_sum(divergences(self.policy, batch), batch.weights)

    @torch.no_grad()
    def _estimate_again(self, rollout: Rollout) -> Minibatch:
        """Return the rollout's rows with advantages and value targets of the current critic."""
        length = self.sequence_length(rollout.num_steps)
        values, boundary_values = rollout_values(self.policy, rollout, length)
        next_values = following_values(values, boundary_values, rollout.boundary_rows)
        normalize = self.update_settings.normalize_advantages
        advantages, returns = estimate_advantages(rollout, values, next_values, normalize, sum_over_ranks)
        return replace(rollout, advantages=advantages, returns=returns).flatten(length)

    def _update(self) -> MinibatchUpdate:
        if self.minibatch_update is None:
            self.minibatch_update = MinibatchUpdate(
                self, self.minibatch_loss, self.wrapped_optimizers(), self.compile_update
            )
        return self.minibatch_update

    def _backward(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        """Set the gradients of the minibatch `rows` (B,), its weights scaled, and return what it reports."""
        if self._trust_region is None:
            return self._update().backward(batch, rows, scale)
        self._update().zero_grad()
        loss, reported = self.minibatch_loss(select(batch, rows, scale))
        set_gradients(loss, self._trust_region.unmoved, mean_over_ranks)
        return reported

    def minibatch_loss(self, minibatch: Minibatch) -> tuple[Tensor, MinibatchReport]:
        """Return the loss to minimise, policy + c1 value - c2 entropy (PPO paper, eq. 9), and what to report.

        Args:
            minibatch: B transitions whose weights sum to 1 over all ranks, on average over the ranks.

        Returns:
            The scalar loss, and what to report.
        """
        now = self.policy.evaluate(minibatch)
        weights = minibatch.weights
        terms = self._terms(now, minibatch)
        policy_loss = weighted_sum(self.policy_loss(terms), weights)
        critic_loss = weighted_sum(self.value_loss(now.values, minibatch), weights)
        entropy = weighted_sum(now.entropies, weights)
        loss = policy_loss + self._current["value_coefficient"] * critic_loss
        if self._entropy_matters:
            loss = loss - self._current["entropy_coefficient"] * entropy
        extra = [weighted_sum(term(self.policy, minibatch, now), weights) for term in self.loss_terms.values()]
        for name, value in zip(self.loss_terms, extra, strict=True):
            loss = loss + self._current[f"{name}_weight"] * value
        means = torch.stack((policy_loss, critic_loss, entropy, *extra)).detach()
        return loss, MinibatchReport(means, terms.log_ratios.detach())

    def constrained_loss(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Return the policy's loss over a whole rollout and the mean KL divergence that a trust region bounds."""
        now = self.policy.evaluate(batch)
        terms = self._terms(now, batch)
        loss = weighted_sum(self.policy_loss(terms), batch.weights)
        if self._entropy_matters:
            loss = loss - self._current["entropy_coefficient"] * weighted_sum(now.entropies, batch.weights)
        return loss, weighted_sum(self.policy.head.kl(batch.distribution, now.distribution), batch.weights)

    def _terms(self, now: Evaluation, minibatch: Minibatch) -> PolicyTerms:
        log_ratios = masked_log_ratios(now.log_probs, minibatch.log_probs, minibatch.weights)
        kl = self.policy.head.kl(minibatch.distribution, now.distribution) if self.objective.needs_kl else None
        return PolicyTerms(now.log_probs, log_ratios, minibatch.advantages, kl)

    def policy_loss(self, terms: PolicyTerms) -> Tensor:
        """Return the policy loss of each transition, (B,)."""
        return self.objective(terms, self._current)

    def value_loss(self, values: Tensor, minibatch: Minibatch) -> Tensor:
        """Return the value loss (B,) of current values (B,)."""
        return value_loss(values, minibatch.returns, minibatch.values, self._current.get("value_clip_range"))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the norm of all gradients before the first step of a minibatch: by now they are unscaled."""
        if optimizer is self.fit_optimizers.optimizers[0]:
            self._grad_norm = self._update().clip(self.update_settings.max_grad_norm)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the settings, and the scheduler of its learning rate."""
        return make_optimizer(self.optimizer_settings, self.parameters())

    def _apply_schedules(self) -> None:
        progress = self.progress
        self._values = {name: schedule(progress) for name, schedule in self.coefficients.items()}
        for name, value in self._values.items():
            if name not in self._current:
                self._current[name] = torch.tensor(value, device=self.device)
            self._current[name].fill_(value)
        self.follow_learning_rate(progress)

    @torch.no_grad()
    def _finish(self, rollout: Rollout, batch: Minibatch, epochs: Tensor, before: Snapshot, started: float) -> None:
        """Check, count and log an iteration."""
        self.recent_returns.extend(rollout.episodes.returns.tolist())
        self.recent_lengths.extend(rollout.episodes.lengths.tolist())
        window = (sum(self.recent_returns), sum(self.recent_lengths), len(self.recent_returns))
        needed = learnt_from(self.statistics, self._entropy_matters, self.trainer.precision_plugin)
        report = report_iteration(rollout, batch, epochs, self.statistics, self._divergence(batch), window, needed)
        if not report.finite:
            before.restore()
            raise non_finite(epochs, self.statistics, needed, self.iterations, self.env_steps)
        self.policy.version += 1
        self.count(report.env_steps)
        # the bound of a trust region is one on everything that the policy moves by
        self.decay_std(Schedule() if self._trust_region else self.coefficients["std_decay"])
        self.action_masks = rollout.action_masks is not None
        self.policy.update_statistics(rollout, sum_over_ranks)
        update_seconds = time.perf_counter() - started - self._update().latest_compile_seconds
        self.compile_seconds += self._update().latest_compile_seconds
        self.collect_seconds, self.update_seconds = report.collect_seconds, update_seconds
        seconds = self.collect_seconds + update_seconds
        metrics = report.metrics | {
            **self.fit_optimizers.rates(),
            "rollout/policy_lag": float(self.policy.version - 1 - rollout.policy_version),
            "time/env_steps_per_second": report.env_steps / seconds,
            "time/collect_share": self.collect_seconds / seconds,
            "time/update_share": update_seconds / seconds,
            "step": float(self.env_steps),
        }
        self.finish_learning_rate(self.progress, report.kl)
        metrics |= {f"update/{name}": value for name, value in (self._values | self.objective.coefficients()).items()}
        self.objective.after_iteration(report.kl)
        if self._trust_region is not None:
            last = self._trust_region.last
            metrics |= {"update/step_fraction": last.step_fraction, "update/improvement": last.improvement}
        log_metrics(self, metrics)
        self.fit_optimizers.after_iteration(self, metrics)
        self.stop_if_spent(rollout.num_steps * rollout.num_envs)

    # ---------------------------------------------------------------- the Trainer's flags and checkpoints

    def configure_callbacks(self) -> list:
        """Explain what of the Trainer cannot work here, before Lightning rejects it without saying what to do."""
        check_trainer(self.trainer)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Connect the ranks."""
        join_ranks(self.trainer.strategy.root_device, self.trainer.num_nodes)

    def on_fit_start(self) -> None:
        """Check what can only be checked once data, callbacks and optimizers are known."""
        super().on_fit_start()
        check_fit(self, getattr(self.trainer, "datamodule", None), self.trainer)
        self.prepare_fit()
        self.minibatch_update = None
        self._current.clear()  # the device may be another one

    def on_fit_end(self) -> None:
        """Let go of what updates, which belongs to the fit."""
        super().on_fit_end()
        self.minibatch_update = None

    def on_train_start(self) -> None:
        """End a run at once if its budget is used up."""
        super().on_train_start()
        data = getattr(self.trainer, "datamodule", None)
        self.begin(None if data is None or not hasattr(data, "num_steps") else data.num_steps * data.num_envs)
