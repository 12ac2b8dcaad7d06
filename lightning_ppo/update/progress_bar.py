"""The progress of training in environment steps: a bar in a terminal or notebook, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from pytorch_lightning.trainer.connectors import callback_connector
from tqdm import tqdm

LINE_SECONDS = 30.0
"""Seconds between lines where there is no terminal, as in a log file."""


class EnvStepsProgressBar(ProgressBar):
    """One bar for the whole training, in environment steps, with return, speed and time left.

    A `Trainer` shows it for `PPO` unless it is given another. Without a terminal, there is a line every half minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True
        self._lines = False
        self._started_at, self._told = 0, 0.0

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where training stands."""
        if not self._enabled:
            return
        module: Any = pl_module
        self._lines = not (sys.stdout.isatty() or "ipykernel" in sys.modules)
        self._started_at, self._told = module.env_steps, time.monotonic()
        self._bar = tqdm(
            total=module.total_env_steps,
            initial=module.env_steps,
            unit=" steps",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.1,
            file=_Nowhere() if self._lines else sys.stdout,
            desc=_environment_name(trainer),
            mininterval=0.2,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar to the environment steps made."""
        if self._bar is None:
            return
        module: Any = pl_module
        shown = {}
        if module.recent_returns:
            shown["return"] = f"{sum(module.recent_returns) / len(module.recent_returns):.1f}"
        evaluated = trainer.callback_metrics.get("eval/return_mean")
        if evaluated is not None:
            shown["eval"] = f"{float(evaluated):.1f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(module.env_steps - self._bar.n)
        if self._lines and time.monotonic() - self._told >= LINE_SECONDS:
            self._tell()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is None:
            return
        if self._lines and self._bar.n > self._started_at:
            self._tell()
        self._bar.close()
        self._bar = None

    def _tell(self) -> None:
        """Print what the bar would show, without its picture."""
        bar = self._bar
        assert bar is not None
        self._told = time.monotonic()
        parts = tqdm.format_meter(**{**bar.format_dict, "ncols": 0})
        print(parts, flush=True)


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


class TQDMOfTrainer(TQDMProgressBar):
    """The bar that a Trainer makes by itself, to be told from one that its user has made."""


class RichOfTrainer(RichProgressBar):
    """The same, where rich is installed."""


# the classes of which a Trainer makes its default
vars(callback_connector).update(TQDMProgressBar=TQDMOfTrainer, RichProgressBar=RichOfTrainer)


def show_env_steps(trainer: Any) -> None:
    """Put `EnvStepsProgressBar` in the place of the bar that a Trainer has by default."""
    bar: Any = trainer.progress_bar_callback
    if isinstance(bar, TQDMOfTrainer | RichOfTrainer):
        trainer.callbacks[trainer.callbacks.index(bar)] = EnvStepsProgressBar()


def _environment_name(trainer: pl.Trainer) -> str:
    settings = getattr(getattr(trainer, "datamodule", None), "env_settings", None)
    return settings.id if settings is not None else ""


class _NoTips(logging.Filter):
    """Drops the advertisements among Lightning's messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().lstrip().startswith("💡 Tip")


logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_NoTips())
