"""The stopwatch as a Lightning callback."""

from typing import Any

import pytorch_lightning as pl
from stopwatch import Stopwatch, read_race

race = read_race()
stopwatch = Stopwatch(race.env_steps_per_iteration)
"""Of this process."""


class Laps(pl.Callback):
    """Laps where an iteration ends, and ends the race after the last of them."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time; the iteration's metrics are written within the next lap.

        Rows of a rollout in which an environment was only reset are no environment steps.
        """
        stopwatch.lap(module.env_steps)
        trainer.should_stop = len(stopwatch.times) == race.iterations
