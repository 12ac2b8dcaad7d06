"""Hooks of the `LightningModule` around the optimizers of a fit and their learning rates."""

from dataclasses import replace
from typing import Any

from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.trainer.states import TrainerFn

from lightning_ppo.settings.algorithm import OptimizerConfig
from lightning_ppo.settings.loading import to_container
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.evaluation_steps import EvaluationSteps
from lightning_ppo.update.optimizers import Optimizers, check_when_configured
from lightning_ppo.update.policy_objectives import PolicyObjective


class FitOptimizers(EvaluationSteps):
    """Knows the optimizers of the fit that is going on, and has their schedulers stepped.

    Attributes:
        optimizer_settings: The `optimizer` section.
    """

    optimizer_settings: OptimizerConfig
    objective: PolicyObjective

    def __init__(self) -> None:
        super().__init__()
        self._fit_optimizers: Optimizers | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from, less what belongs to a fit."""
        state = super().__getstate__() | {"_fit_optimizers": None, "minibatch_update": None}
        state.pop("configure_optimizers", None)
        return state

    @property
    def fit_optimizers(self) -> Optimizers:
        """The optimizers of the fit that is going on."""
        assert self._fit_optimizers is not None
        return self._fit_optimizers

    @fit_optimizers.setter
    def fit_optimizers(self, value: Optimizers | None) -> None:
        self._fit_optimizers = value

    def wrapped_optimizers(self) -> list[LightningOptimizer]:
        """Return them as Lightning wraps them."""
        optimizers: Any = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    @property
    def learning_rate(self) -> Schedule:
        """The setting `optimizer.learning_rate`, which may be set between two fits."""
        return self.optimizer_settings.schedule()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer_settings = replace(self.optimizer_settings, learning_rate=value)
        self.hparams["optimizer"] = to_container(self.optimizer_settings)

    def _followed(self) -> Schedule:
        """Return the schedule that steered optimizers follow; under a trust region KL says nothing of the critic's."""
        schedule = self.learning_rate
        return Schedule(start=schedule.start) if schedule.adaptive and self.objective.trust_region else schedule

    def follow_learning_rate(self, progress: float) -> None:
        """Set the learning rate of an iteration."""
        for scheduler in self.fit_optimizers.steered:
            scheduler.follow(self._followed(), progress)

    def finish_learning_rate(self, progress: float, kl: float) -> None:
        """Set what the KL divergence of an iteration makes of the learning rate."""
        for scheduler in self.fit_optimizers.steered:
            scheduler.finish(self._followed(), progress, kl)

    def configure_callbacks(self) -> list:
        """Have the optimizers checked when they are made."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_when_configured(self)
        return []

    def on_fit_start(self) -> None:
        """Make sure that the optimizers have been seen."""
        super().on_fit_start()
        if self._fit_optimizers is None:
            raise ConfigError("configure_callbacks: a subclass that overrides it calls super().configure_callbacks()")

    def on_fit_end(self) -> None:
        """Let go of the optimizers, which belong to the fit."""
        super().on_fit_end()
        self.fit_optimizers = None

    def on_train_start(self) -> None:
        """Apply optimizer settings that changed on resuming."""
        super().on_train_start()
        self.fit_optimizers.use_settings()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Step schedulers that monitor what somebody else has logged."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.fit_optimizers.after_logging(self)

    def on_validation_epoch_end(self) -> None:
        """Log the evaluation, and step schedulers that monitor it."""
        super().on_validation_epoch_end()
        if self._fit_optimizers is not None and not self.trainer.sanity_checking:
            self._fit_optimizers.after_evaluation(self)

    def on_train_epoch_end(self) -> None:
        """Step schedulers that monitor what is known at the end of an epoch only."""
        super().on_train_epoch_end()
        self.fit_optimizers.after_epoch(self)
