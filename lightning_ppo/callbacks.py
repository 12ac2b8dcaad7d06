"""What Lightning lacks for reinforcement learning: progress in environment steps, stopping without losses."""

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from lightning_ppo.distributed import max_over_ranks
from lightning_ppo.errors import EnvironmentFault
from lightning_ppo.module import PPO

_log = logging.getLogger(__name__)

SHARE = 0.08
"""Of the time, at most, that goes into writing last.ckpt: below a tenth, also where the state grows."""

QUICK = 0.1
"""Seconds up to which it is written whenever it is due."""


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
        """Open the bar where training stands."""
        if not self._enabled:
            return
        module = _ppo(pl_module)
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
        module, shown = _ppo(pl_module), {}
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


def _ppo(module: pl.LightningModule) -> PPO:
    if not isinstance(module, PPO):
        raise TypeError(f"this callback is made for PPO, not for {type(module).__name__}")
    return module


def _environment_name(trainer: pl.Trainer) -> str:
    settings = getattr(getattr(trainer, "datamodule", None), "env_settings", None)
    return settings.id if settings is not None else ""


class Interrupted(Exception):
    """Training was stopped by a signal after its state had been saved.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number

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
            raise Interrupted(number)
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
        raise Interrupted(number)

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
        """Take over the signals for the evaluation after training; stop if one has come to any rank."""
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


class LastCheckpoint(Checkpoint):
    """Writes the state of the run at ends of epochs, after the epoch's evaluation and log.

    Where that takes long, epochs are left out, so that less than a tenth of the time goes into it.

    Args:
        path: The file.
        every_env_steps: Environment steps between two writes, at least; None writes after every epoch.
    """

    def __init__(self, path: str | os.PathLike[str], every_env_steps: int | None = None) -> None:
        self.path = path
        self.every_env_steps = every_env_steps
        self._written_at = 0
        self._began, self._took = -math.inf, 0.0
        self._said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run goes on."""
        self._written_at = _ppo(pl_module).env_steps

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, if it is time."""
        env_steps = _ppo(pl_module).env_steps
        if env_steps - self._written_at >= (self.every_env_steps or 1) and not self._too_soon(pl_module):
            self._began = time.perf_counter()
            trainer.save_checkpoint(os.fspath(self.path))
            self._took = time.perf_counter() - self._began
            self._written_at = env_steps

    def _too_soon(self, pl_module: pl.LightningModule) -> bool:
        """Return whether on some rank writing again would take more than its share of the time."""
        pause = self._took / SHARE if self._took > QUICK else 0.0
        too_soon = time.perf_counter() - self._began < pause
        if not max_over_ranks(torch.tensor([int(too_soon)], device=pl_module.device)):
            return False
        if not self._said:
            rank_zero_only(_log.info)(
                f"Writing {os.path.basename(self.path)} takes {self._took:.1f} s; it is not written more often than "
                f"every {pause:.0f} s, so that training does not wait for it."
            )
        self._said = True
        return True


class RecordConfig(Callback):
    """Puts the settings of a run into its checkpoints, so that resuming needs no other file.

    Args:
        settings: Plain dicts, lists and scalars.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings."""
        checkpoint["config"] = self.settings


class RelocatableCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best score again after its directory was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state, with the paths of files that now lie in this directory."""
        moved = dict(state_dict)
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = self._here(moved.get(name, ""))
        moved["best_k_models"] = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        moved["dirpath"] = self.dirpath
        super().load_state_dict(moved)

    def _here(self, path: str) -> str:
        return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path


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
        module = _ppo(pl_module)
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
        """Go on counting from a checkpoint."""
        for name in self._SAVED:
            setattr(self, name, state_dict[name])
