"""The budget of a training: which limit ends it, and what share of it is used."""

import logging
import math
from typing import Any

import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_ppo.support.distributed import max_over_ranks, world_size
from lightning_ppo.support.notices import warn_once

_log = logging.getLogger(__name__)


class Budget:
    """Counts what has been trained on, and knows how much of the training that is.

    Attributes:
        total_env_steps: The training budget over all ranks.
        env_steps: Environment steps trained on, over all ranks.
        iterations: Rollouts trained on.
        begun_at: Iterations that are not those of this fit's epochs: of an earlier fit, less those that epochs lacked.
        time_share: Share of the time limit that had passed at the end of the latest iteration, the same on all ranks.

    Args:
        total_env_steps: None leaves the end of training to the Trainer.
    """

    def __init__(self, total_env_steps: int | None) -> None:
        self.total_env_steps = total_env_steps
        self.env_steps = 0
        self.iterations = 0
        self.begun_at = 0
        self.time_share = 0.0
        self._epoch = 0, math.inf

    def progress(self, trainer: Any) -> float:
        """Return the share of the training budget used, in [0, 1]: of the limit that ends training first.

        Beside `total_env_steps` epochs only interrupt: a run that is given more of them goes on as if never stopped.
        """
        return min(max(self._shares(trainer), default=0.0), 1.0)

    def _shares(self, trainer: Any) -> list[float]:
        """Return the used share of each limit there is: of env steps, optimizer steps, epochs, time."""
        limits = [(self.env_steps, self.total_env_steps or 0), (trainer.global_step, trainer.max_steps)]
        if not self.total_env_steps and math.isfinite(trainer.num_training_batches):
            batches = (trainer.max_epochs or 0) * int(trainer.num_training_batches)
            limits.append((self.iterations - self.begun_at, batches))
        shares = [used / limit for used, limit in limits if limit > 0]
        return [*shares, self.time_share] if _timers(trainer) else shares

    def count(self, env_steps: int, trainer: Any) -> None:
        """Count an iteration of `env_steps` environment steps over all ranks; all of them call it."""
        self.iterations += 1
        self.env_steps += env_steps
        self.time_share = _share_of_time(trainer)

    def begin(self, trainer: Any, rows: int | None) -> None:
        """See what is left of the budget: warn if nothing is known of it, and end a fit whose budget is used up.

        Args:
            trainer: The Trainer, at the start of a fit.
            rows: Of a rollout on every rank, if that is known.
        """
        resumed = trainer.ckpt_path is not None
        # a resumed run goes on with what its checkpoint says, unless it has got more time
        passed = _share_of_time(trainer)
        self.time_share = min(self.time_share, passed) if resumed else passed
        if not self._shares(trainer):
            rank_zero_warn(
                "no limit of this training is known, so every schedule stays at its start; set total_env_steps, or "
                "max_epochs, max_steps or max_time of the Trainer"
            )
        if rows is None or not self.total_env_steps:
            return
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        last = self.env_steps + epochs * trainer.num_training_batches * rows * world_size()
        if epochs > 0 and last + rows * world_size() <= self.total_env_steps:
            rank_zero_only(_log.info)(
                f"max_epochs={trainer.max_epochs} ends this fit after {last:,} steps; schedules follow "
                f"total_env_steps={self.total_env_steps:,} all the same"
            )
        if self.stop_if_spent(trainer, rows) and not resumed:
            rank_zero_warn(
                f"nothing is trained: {self.env_steps:,} steps are done, and another rollout would exceed "
                f"total_env_steps={self.total_env_steps:,}; raise it"
            )

    def iterations_left(self, trainer: Any, rows: int | None, steps: int) -> int | None:
        """Return how many iterations a fit makes at least if nothing interrupts it; None if that is not known.

        Args:
            trainer: The Trainer, at the start of a fit.
            rows: Of a rollout on every rank, if that is known.
            steps: Optimizer steps of an iteration, at most; 0 if that is not known.
        """
        left: list[float] = []
        if rows and self.total_env_steps:
            left.append((self.total_env_steps - self.env_steps) // (rows * world_size()))
        if steps and trainer.max_steps > 0:
            left.append(math.ceil((trainer.max_steps - trainer.global_step) / steps))
        if (trainer.max_epochs or 0) > 0:
            left.append((trainer.max_epochs - trainer.current_epoch) * trainer.num_training_batches)
        known = left and math.isfinite(min(left)) and not _timers(trainer)
        return max(int(min(left)), 0) if known else None

    def begin_epoch(self, trainer: Any) -> None:
        """Count iterations from here as those of this epoch, however many the epochs before had."""
        if math.isfinite(trainer.num_training_batches):
            self.begun_at = self.iterations - trainer.current_epoch * int(trainer.num_training_batches)
        loop = trainer.fit_loop.epoch_loop
        resumed_at = loop.batch_progress.current.completed if loop.restarting else 0
        self._epoch = self.iterations, trainer.num_training_batches - resumed_at

    def end_epoch(self, trainer: Any) -> None:
        """Say once if an epoch has had fewer iterations than it should, and nobody has stopped training."""
        before, due = self._epoch
        done, enough = self.iterations - before, 0 < trainer.max_steps <= trainer.global_step
        if done < due < math.inf and not (trainer.should_stop or enough):
            message = (
                f"an epoch has had {done} of {due} iterations: something raised StopIteration, or returned -1 from "
                "on_train_batch_start"
            )
            warn_once(_log, "broken off", message)

    def stop_if_spent(self, trainer: Any, rows: int) -> bool:
        """End training if a rollout of `rows` rows on every rank would exceed the budget; return whether it would."""
        spent = bool(self.total_env_steps) and self.env_steps + rows * world_size() > (self.total_env_steps or 0)
        if spent and not trainer.should_stop:
            trainer.should_stop = True
            if not _may_stop(trainer):
                rank_zero_warn("training continues beyond total_env_steps, as min_epochs or min_steps require")
        return spent


def _may_stop(trainer: Any) -> bool:
    """Return whether the Trainer has done the epochs and steps that it must."""
    epochs = trainer.fit_loop.epoch_progress.current.processed
    return epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)


def _timers(trainer: Any) -> list[Timer]:
    """Return what ends training after some time: the Trainer's `max_time`, and Timers of the user's own."""
    timers = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    return [timer for timer in timers if timer.time_remaining() is not None]


def _share_of_time(trainer: Any) -> float:
    """Return the share of the time limit that has passed, the same on all ranks; all of them call it."""
    shares = [0.0]
    for timer in _timers(trainer):
        passed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
        shares.append(passed / (passed + left) if passed + left > 0 else 1.0)
    if len(shares) == 1:
        return 0.0
    return float(max_over_ranks(torch.tensor(max(shares), device=trainer.strategy.root_device)))
