"""Stop on signals without losing progress."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from lightning_ppo.support.checkpoint_files import versions
from lightning_ppo.support.distributed import max_over_ranks
from lightning_ppo.support.errors import EnvironmentFault


class Interrupted(Exception):
    """Training was stopped by a signal after its state had been saved.

    Attributes:
        signal_number: The signal.
        run_dir: The run directory, with which the run can go on; None if nothing was saved.
    """

    def __init__(self, signal_number: int, run_dir: Path | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.run_dir = run_dir

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for a scheduler's signal."""
        return 130 if self.signal_number == signal.SIGINT else 143


class GracefulStop(Callback):
    """On Ctrl-C, SIGTERM or SIGUSR1: finish the iteration, save a checkpoint, stop.

    Saves when an environment fails and when training ends, too. All ranks agree at the end of an iteration, of an
    evaluation and before the test, so that none waits for another. A second Ctrl-C stops at once. During the evaluation
    after training nothing is left to save: the first one does.

    SIGUSR1 is what a scheduler is told to send before it takes the machine away; in a SLURM job it also puts the job
    back into the queue. SIGTERM does not, since it is what `scancel` sends.

    Args:
        checkpoint_path: Where the checkpoint goes; None saves none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, checkpoint_path: str | os.PathLike[str] | None) -> None:
        self.checkpoint_path = checkpoint_path
        self._received = self._agreed = 0
        self._training = False
        self._previous: dict[int, Any] = {}

    def _take_over(self, handler: Callable[[int, FrameType | None], None]) -> None:
        with contextlib.suppress(ValueError):  # signals can only be handled in the main thread
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, handler)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise Interrupted(number, self._run_dir())
        self._received = self._received or number
        tqdm.write(f"{signal.Signals(number).name}: finishing the iteration and saving; Ctrl-C again stops at once")

    def _agree(self, pl_module: pl.LightningModule) -> bool:
        """Return whether any rank has received a signal."""
        self._agreed = int(max_over_ranks(torch.tensor([self._received], device=pl_module.device)))
        return bool(self._agreed)

    def _agree_and_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Return whether any rank has received a signal; if so, save."""
        if self._agree(pl_module):
            self._save(trainer)
        return bool(self._agreed)

    def _save(self, trainer: pl.Trainer) -> None:
        if self.checkpoint_path is not None:
            trainer.save_checkpoint(os.fspath(self.checkpoint_path))

    def _stop(self) -> None:
        if self._agreed:
            self._interrupt(self._agreed)

    def _interrupt(self, number: int, frame: FrameType | None = None) -> None:
        if number == signal.SIGUSR1:
            requeue()
        raise Interrupted(number, self._run_dir())

    def _run_dir(self) -> Path | None:
        """Return the directory of `checkpoints/last.ckpt`, where a checkpoint is."""
        path = None if self.checkpoint_path is None else Path(self.checkpoint_path)
        return None if path is None or not versions(path) else path.parent.parent

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals; Lightning has installed its own handlers by now."""
        self._take_over(self._receive)
        self._training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if any rank has received a signal, and lead the Trainer to the end of the epoch."""
        if self._agree_and_save(trainer, pl_module):
            trainer.should_stop = True

    # Lightning logs an iteration after on_train_batch_end; whichever of these hooks comes next ends the run

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before an evaluation."""
        self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at the end of the epoch, also for a signal that came during its evaluation."""
        if self._agreed or self._agree_and_save(trainer, pl_module):
            self._stop()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the next update, if the Trainer's `min_epochs` kept it going."""
        self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the finished agent and give the signals back."""
        self._training = False
        self._save(trainer)
        self._give_back()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals for the evaluation after training; stop if any rank has received one."""
        if self._agree(pl_module):
            self._stop()
        self._take_over(self._interrupt)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back, and save what was learnt before an environment failed."""
        self._give_back()
        if self._training and isinstance(exception, EnvironmentFault):
            self._save(trainer)  # all ranks raise it together


@rank_zero_only
def requeue() -> None:
    """Put the SLURM job that this process belongs to back into the queue; do nothing outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    tqdm.write(f"SLURM job {job} " + (f"could not be requeued: {problem}" if problem else "was requeued"))
