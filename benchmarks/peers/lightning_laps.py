"""The stopwatch as a Lightning callback."""

from typing import Any

import pytorch_lightning as pl
from stopwatch import Stopwatch

stopwatch = Stopwatch()
"""Of this process."""


class Laps(pl.Callback):
    """Laps where an iteration ends."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time; the iteration's metrics are written within the next lap."""
        stopwatch.lap()
