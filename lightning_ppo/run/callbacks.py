"""A callback that adds up where the time of training goes."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_ppo.update.ppo import PPO


def as_ppo(module: pl.LightningModule) -> PPO:
    """Return the module that a callback is used with, if it is PPO."""
    if not isinstance(module, PPO):
        raise TypeError(f"this callback is made for PPO, not for {type(module).__name__}")
    return module


class Timing(Callback):
    """Adds up where the time of training goes, over all the processes of a resumed run.

    Attributes:
        collect_seconds: Collecting rollouts.
        update_seconds: Updating.
        evaluate_seconds: Evaluating, during training and after it.
        env_steps: Environment steps trained on, over all ranks.
        fit_seconds: Whole `fit`, with evaluation and checkpoints.
    """

    _SAVED = ("collect_seconds", "update_seconds", "evaluate_seconds", "fit_seconds", "env_steps")

    def __init__(self) -> None:
        self.collect_seconds = self.update_seconds = self.evaluate_seconds = self.fit_seconds = 0.0
        self.env_steps = 0
        self._started = self._evaluation_started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter() - self.fit_seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add an iteration."""
        module = as_ppo(pl_module)
        self.collect_seconds += module.collect_seconds
        self.update_seconds += module.update_seconds
        self.env_steps = module.env_steps
        self.fit_seconds = time.perf_counter() - self._started

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of an evaluation."""
        self._evaluation_started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add an evaluation, before what it leads to is saved."""
        self.evaluate_seconds += time.perf_counter() - self._evaluation_started

    on_test_start, on_test_epoch_end = on_validation_start, on_validation_epoch_end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.fit_seconds = time.perf_counter() - self._started

    @property
    def env_steps_per_second(self) -> float:
        """Environment steps per second of collecting and updating."""
        seconds = self.collect_seconds + self.update_seconds
        return self.env_steps / seconds if seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the times so far, for the checkpoint."""
        return {name: getattr(self, name) for name in self._SAVED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from a checkpoint."""
        for name in self._SAVED:
            setattr(self, name, state_dict.get(name, 0.0))


class Laps(Callback):
    """Times iterations, and ends the training after enough of them.

    Attributes:
        laps: Seconds of collecting, of updating, and of each iteration as a whole.

    Args:
        least: Iterations that are made in any case.
        seconds: Time after the first iteration in which further ones are begun.
    """

    def __init__(self, least: int, seconds: float) -> None:
        self.least, self.seconds = least, seconds
        self.laps: list[tuple[float, float, float]] = []
        self._latest = self._first = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._latest = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add an iteration."""
        module, now = as_ppo(pl_module), time.perf_counter()
        self.laps.append((module.collect_seconds, module.update_seconds, now - self._latest))
        self._latest, self._first = now, self._first or now
        trainer.should_stop = len(self.laps) >= self.least and now - self._first >= self.seconds
