"""Callbacks that show progress in environment steps and add up where the time of training goes."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar
from tqdm import tqdm

from lightning_ppo.update.ppo import PPO


class EnvStepsProgressBar(ProgressBar):
    """One bar for the whole training, in environment steps, with return, speed and time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the current step."""
        if not self._enabled:
            return
        module = as_ppo(pl_module)
        self._bar = tqdm(
            total=module.total_env_steps,
            initial=module.env_steps,
            unit=" steps",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.1,
            file=sys.stdout,
            desc=_environment_name(trainer),
            mininterval=0.2 if sys.stdout.isatty() else 10.0,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar to the environment steps made."""
        if self._bar is None:
            return
        module, shown = as_ppo(pl_module), {}
        if module.recent_returns:
            shown["return"] = f"{sum(module.recent_returns) / len(module.recent_returns):.1f}"
        evaluated = trainer.callback_metrics.get("eval/return_mean")
        if evaluated is not None:
            shown["eval"] = f"{float(evaluated):.1f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(module.env_steps - self._bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def as_ppo(module: pl.LightningModule) -> PPO:
    """Return the module that a callback is used with, if it is PPO."""
    if not isinstance(module, PPO):
        raise TypeError(f"this callback is made for PPO, not for {type(module).__name__}")
    return module


def _environment_name(trainer: pl.Trainer) -> str:
    settings = getattr(getattr(trainer, "datamodule", None), "env_settings", None)
    return settings.id if settings is not None else ""


class Timing(Callback):
    """Adds up where the time of training goes, over all the processes of a resumed run.

    Attributes:
        collect_seconds: Collecting rollouts.
        update_seconds: Updating.
        env_steps: Environment steps trained on, over all ranks.
        fit_seconds: Whole `fit`, with evaluation and checkpoints.
    """

    _SAVED = ("collect_seconds", "update_seconds", "fit_seconds", "env_steps")

    def __init__(self) -> None:
        self.collect_seconds = self.update_seconds = self.fit_seconds = 0.0
        self.env_steps = 0
        self._started = 0.0

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
            setattr(self, name, state_dict[name])
