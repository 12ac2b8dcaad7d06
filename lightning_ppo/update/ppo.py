"""The LightningModule: one training step is one PPO iteration over a rollout."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import gymnasium
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.scoring import divergences, estimated_again
from lightning_ppo.rollout.shapes import Minibatch, Rollout, select
from lightning_ppo.settings.algorithm import NormalizeConfig, OptimizerConfig, UpdateConfig, resolve_sequence_length
from lightning_ppo.settings.class_path import as_path
from lightning_ppo.settings.loading import as_section, to_container
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.distributed import mean_over_ranks
from lightning_ppo.support.spaces import space_from_spec, space_to_spec
from lightning_ppo.update import hooks, sharding, training_state
from lightning_ppo.update.budget import Budget
from lightning_ppo.update.checked_loading import checked_loading, from_hub
from lightning_ppo.update.checks import check_trust_region, tell_of_changes
from lightning_ppo.update.coefficients import Coefficients
from lightning_ppo.update.evaluation_results import EvaluationResults
from lightning_ppo.update.iteration import finish_iteration
from lightning_ppo.update.loss_terms import make_loss_terms
from lightning_ppo.update.minibatch_update import MinibatchUpdate, Snapshot, one
from lightning_ppo.update.objectives import value_loss, weighted_sum
from lightning_ppo.update.optimizers import Optimizers, make_optimizer
from lightning_ppo.update.parameter_groups import freeze
from lightning_ppo.update.policy_objectives import PolicyTerms, policy_terms, resolved_objective
from lightning_ppo.update.reports import LOSSES, MEASURES, MinibatchReport, epoch_statistics
from lightning_ppo.update.shuffle import Shuffle
from lightning_ppo.update.training_state import RecentEpisodes
from lightning_ppo.update.trust_region import TrustRegion, make_trust_region, set_gradients, step_policy


class PPO(pl.LightningModule):
    """Proximal Policy Optimization (Schulman et al. 2017, "Proximal Policy Optimization Algorithms").

    Its batches are the rollouts of `RolloutDataModule`. To change the algorithm, override `policy_loss`,
    `minibatch_loss` or `configure_optimizers`.

    Args:
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        objective: Name of the policy objective, or a `PolicyObjective` as class path, class, or class_path with
            init_args.
        update: Settings of the section `update`, as `UpdateConfig` or a mapping of its fields.
        optimizer: Likewise of `optimizer`.
        policy: Likewise of `policy`.
        normalize: Likewise of `normalize`.
        total_env_steps: Training stops before this many environment steps over all ranks would be exceeded, and
            schedules reach their end there. None leaves the end to the Trainer.
        compile: Compile the minibatch loss and its gradients into one graph: True, False, or `auto` (see `compiling`).
        plain: Take none of the shortcuts of `lightning_ppo.speed`: the same results, slower, to isolate a bug.
        loss_terms: Losses added to that of the objective (see `loss_terms`).

    Raises:
        ConfigError: If a setting is unknown or out of range.
        UnsupportedSpaceError: If no network or action head handles a space.
    """

    load_from_checkpoint, from_hub = checked_loading(pl.LightningModule), classmethod(from_hub)

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
        compile: bool | str = "auto",
        plain: bool = False,
        loss_terms: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        objective = as_path(objective)
        made, self.update_settings = resolved_objective(objective, as_section(UpdateConfig, update, "update"))
        self.optimizer_settings = as_section(OptimizerConfig, optimizer, "optimizer")
        networks = as_section(PolicyConfig, policy, "policy")
        statistics = as_section(NormalizeConfig, normalize, "normalize")
        self.observation_space = space_from_spec(observation_space)
        self.action_space = space_from_spec(action_space)
        settings = {
            "objective": objective,
            "update": self.update_settings,
            "optimizer": self.optimizer_settings,
            "policy": networks,
            "normalize": statistics,
            "total_env_steps": total_env_steps,
            "compile": compile,
            "plain": plain,
            "loss_terms": loss_terms,
        }
        self.policy = ActorCritic(self.observation_space, self.action_space, networks, statistics)
        self.policy.rows_at_once = self.update_settings.micro_batch_size
        spaces = {"observation_space": self.observation_space, "action_space": self.action_space}
        specs = {name: space_to_spec(space) for name, space in spaces.items()}
        self.save_hyperparameters(specs | to_container(settings), logger=False)

        self.objective = made
        terms, weights = make_loss_terms(loss_terms, self.policy)
        self.loss_terms = nn.ModuleDict(terms)
        freeze(self.named_parameters(), self.optimizer_settings)
        weights = {f"{name}_weight": weight for name, weight in weights.items()}
        region = self.update_settings.trust_region.schedules() if made.trust_region else {}
        self.coefficients = Coefficients(self.update_settings.schedules(), region | weights)
        self.entropy_matters = self.coefficients.matters("entropy_coefficient")
        self.statistics = (*LOSSES, *(f"loss/{name}" for name in terms), *MEASURES)  # of a minibatch

        self.shuffle = Shuffle()
        self.compile_setting, self.plain = compile, plain
        self.compile_update = compile is True  # of a fit, where it is `auto`
        self.minibatch_update: MinibatchUpdate | None = None  # made for each fit, as are the optimizers
        self.fit_optimizers = Optimizers()
        self.trust_region: TrustRegion | None = None
        if self.objective.trust_region:
            check_trust_region(self.update_settings, self.policy, self.compile_update, terms)
            self.trust_region = make_trust_region(self.update_settings.trust_region, self.policy.parameters())

        self.budget = Budget(total_env_steps)
        self.recent_episodes = RecentEpisodes()
        self.evaluation_results = EvaluationResults()
        self.std_decay = 0.0
        """Log units by which the standard deviation of Gaussian actions has been lowered besides what is learnt."""
        self.action_masks = False
        """Whether the last rollout had action masks; exported agents then take them."""
        self.collect_seconds = self.update_seconds = 0.0  # of the latest iteration
        self.compile_seconds = 0.0  # of all iterations, not counted as updating

    env_steps = property(attrgetter("budget.env_steps"), doc="Environment steps trained on, over all ranks.")
    iterations = property(attrgetter("budget.iterations"), doc="Rollouts trained on.")
    total_env_steps = property(attrgetter("budget.total_env_steps"), doc="The training budget over all ranks.")
    recent_returns = property(attrgetter("recent_episodes.returns"), doc="Returns of this rank's latest episodes.")
    recent_lengths = property(attrgetter("recent_episodes.lengths"), doc="Lengths of this rank's latest episodes.")

    @property
    def progress(self) -> float:
        """Share of the training budget used, in [0, 1]: of the limit that ends training first."""
        return self.budget.progress(self.trainer)

    @property
    def learning_rate(self) -> Schedule:
        """The setting `optimizer.learning_rate`, which may be set between two fits."""
        return self.optimizer_settings.schedule()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer_settings = replace(self.optimizer_settings, learning_rate=value)
        self.hparams["optimizer"] = to_container(self.optimizer_settings)

    # ---------------------------------------------------------------- the update

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Run one PPO iteration: epochs of shuffled minibatches over the rollout.

        Raises:
            NonFiniteError: If a loss or gradient is NaN or infinite; neither it nor what follows it is learnt from.
        """
        started = time.perf_counter()
        tell_of_changes(rollout)
        settings, length = self.update_settings, self.sequence_length(rollout.num_steps)
        batch = rollout.flatten(length)
        update, before = self._prepare(batch)
        if self.trust_region is not None:
            step_policy(self.trust_region, self.policy, batch, self.constrained_loss)
        epochs: list[Tensor] = []
        for epoch in range(settings.epochs_at(self.progress)):
            if epoch > 0 and settings.recompute_advantages:
                batch = self._estimate_again(rollout)
            order = self.shuffle(batch, settings.minibatch_size, length)
            reports, grad_norms = [], []
            for rows, scale in zip(order.rows.unbind(), order.scales.unbind(), strict=True):
                reports.append(self._backward(batch, rows, scale))
                grad_norms.append(update.step())  # which clips the gradients first
            epochs.append(epoch_statistics(reports, grad_norms, order.weights, self.coefficients.now))
            if self._moved_too_far(batch):
                break
        update.release()
        finish_iteration(self, rollout, batch, torch.stack(epochs), update, before, started)

    def sequence_length(self, num_steps: int) -> int:
        """Return L, the consecutive steps that stay together in minibatches of rollouts of T steps."""
        return resolve_sequence_length(num_steps, self.update_settings, self.policy.state_size > 0)

    def _prepare(self, batch: Minibatch) -> tuple[MinibatchUpdate, Snapshot]:
        """Set what is scheduled; return what makes the steps, and what undoes them."""
        progress = self.progress
        self.coefficients.adopt(self.update_settings.schedules())
        self.entropy_matters = self.coefficients.matters("entropy_coefficient")
        self.coefficients.follow(progress, self.device)
        self.fit_optimizers.set_rates(self.steered_rate(), progress)
        if self.trust_region is not None:
            self.trust_region.follow(self.coefficients.values)
        update = self._update()
        update.prepare(batch, self.update_settings.minibatch_size)
        return update, Snapshot(self.buffers())

    def steered_rate(self) -> Schedule:
        """Return the schedule that steered optimizers follow; under a trust region KL says nothing of the critic's."""
        rate = self.learning_rate
        return Schedule(start=rate.start) if rate.adaptive and self.objective.trust_region else rate

    def _update(self) -> MinibatchUpdate:
        if self.minibatch_update is None:
            optimizers: Any = self.optimizers()
            optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
            how = self.compile_update and self.compile_setting
            micro, shared = self.update_settings.micro_batch_size, sharding.has_shards(self.policy)
            self.minibatch_update = MinibatchUpdate(self, self.minibatch_loss, optimizers, how, micro, shared)
        return self.minibatch_update

    def _backward(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        """Set the gradients of the minibatch `rows` (B,), its weights scaled, and return what it reports."""
        if self.trust_region is None:
            return self._update().backward(batch, rows, scale)
        self._update().zero_grad()
        loss, reported = self.minibatch_loss(select(batch, rows, scale))
        set_gradients(loss * one(loss), self.trust_region.unmoved, mean_over_ranks)
        return reported

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the norm of all gradients before the first step of a minibatch: by now they are unscaled."""
        if optimizer is self.fit_optimizers.optimizers[0]:
            self._update().clip(self.coefficients.values.get("max_grad_norm"))

    def divergence(self, batch: Minibatch) -> Tensor:
        """Return the exact KL divergence of the behaviour policy from the current one, summed over this rank's rows."""
        return weighted_sum(divergences(self.policy, batch), batch.weights)

    def _moved_too_far(self, batch: Minibatch) -> bool:
        """Return whether the KL divergence exceeds `target_kl`."""
        bound = self.coefficients.values.get("target_kl")
        if bound is None:
            return False
        divergence, rows = mean_over_ranks(torch.stack((self.divergence(batch), batch.weights.sum())))
        return bool(divergence > bound * rows)

    def _estimate_again(self, rollout: Rollout) -> Minibatch:
        """Return the rollout's rows with advantages and value targets of the current critic."""
        length, normalize = self.sequence_length(rollout.num_steps), self.update_settings.normalize_advantages
        return estimated_again(self.policy, rollout, length, normalize).flatten(length)

    # ---------------------------------------------------------------- the loss

    def minibatch_loss(self, minibatch: Minibatch) -> tuple[Tensor, MinibatchReport]:
        """Return the loss to minimise, policy + c1 value - c2 entropy (PPO paper, eq. 9), and what to report.

        Args:
            minibatch: B transitions whose weights sum to 1 over all ranks, on average over the ranks. With
                `update.micro_batch_size` it is a piece of these, and the losses of all pieces add up.

        Returns:
            The scalar loss, and what to report.
        """
        now, weights = self.policy.evaluate(minibatch), minibatch.weights
        terms = policy_terms(self.objective, self.policy, now, minibatch)
        policy_loss = weighted_sum(self.policy_loss(terms), weights)
        critic_loss = weighted_sum(self.value_loss(now.values, minibatch), weights)
        entropy = weighted_sum(now.entropies, weights)
        loss = policy_loss + self.coefficients.now["value_coefficient"] * critic_loss
        if self.entropy_matters:
            loss = loss - self.coefficients.now["entropy_coefficient"] * entropy
        extra = [weighted_sum(term(self.policy, minibatch, now), weights) for term in self.loss_terms.values()]
        for name, value in zip(self.loss_terms, extra, strict=True):
            loss = loss + self.coefficients.now[f"{name}_weight"] * value
        means = torch.stack((policy_loss, critic_loss, entropy, *extra)).detach()
        return loss, MinibatchReport(means, terms.log_ratios.detach())

    def constrained_loss(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Return the policy's loss over a whole rollout and the mean KL divergence that a trust region bounds."""
        now = self.policy.evaluate(batch)
        loss = weighted_sum(self.policy_loss(policy_terms(self.objective, self.policy, now, batch)), batch.weights)
        if self.entropy_matters:
            loss = loss - self.coefficients.now["entropy_coefficient"] * weighted_sum(now.entropies, batch.weights)
        return loss, weighted_sum(self.policy.head.kl(batch.distribution, now.distribution), batch.weights)

    def policy_loss(self, terms: PolicyTerms) -> Tensor:
        """Return the policy loss of each transition, (B,)."""
        return self.objective(terms, self.coefficients.now)

    def value_loss(self, values: Tensor, minibatch: Minibatch) -> Tensor:
        """Return the value loss (B,) of current values (B,)."""
        return value_loss(values, minibatch.returns, minibatch.values, self.coefficients.now.get("value_clip_range"))

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the settings, and the scheduler of its learning rate."""
        plain = self.plain or sharding.has_shards(self.policy)
        return make_optimizer(self.optimizer_settings, self.named_parameters(), plain)

    # ---------------------------------------------------------------- Lightning's other hooks

    configure_callbacks = hooks.configure_callbacks
    setup = hooks.setup
    on_fit_start = hooks.on_fit_start
    on_train_start = hooks.on_train_start
    on_train_epoch_start = hooks.on_train_epoch_start
    on_train_batch_end = hooks.on_train_batch_end
    on_train_epoch_end = hooks.on_train_epoch_end
    on_fit_end = hooks.on_fit_end
    validation_step = test_step = hooks.take_in
    on_validation_epoch_end = hooks.on_validation_epoch_end
    on_test_epoch_end = hooks.on_test_epoch_end
    predict, predict_step = hooks.predict, hooks.predict_step
    on_save_checkpoint = training_state.save
    on_load_checkpoint = training_state.restore

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights and, where they come from a process that was launched for a fit, what it has counted."""
        if "ppo" in state_dict:
            self.on_load_checkpoint({"ppo": state_dict["ppo"]})
        return super().load_state_dict({k: v for k, v in state_dict.items() if k != "ppo"}, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from, less what belongs to a fit."""
        state = super().__getstate__() | {"fit_optimizers": Optimizers(), "minibatch_update": None}
        for name in ("configure_optimizers", "configure_model"):
            state.pop(name, None)
        return state
