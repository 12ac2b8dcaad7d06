"""Steps of learning-rate schedulers that PPO does not steer: when they are due, tried out beforehand, and made."""

import copy
import warnings
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import LRSchedulerConfig

from lightning_ppo.speed.internals import ends_epoch
from lightning_ppo.support.errors import ConfigError, UserError, one_line
from lightning_ppo.support.overriding import overrides

MOST_TRIED = 100_000
"""Steps that are tried out at most, so that a long training begins at once."""


def is_due_after_iteration(module: pl.LightningModule, config: LRSchedulerConfig) -> bool:
    """Return whether a step is due after the iteration that ends."""
    if config.interval == "epoch":
        return ends_epoch(module.trainer) and is_due_after_epoch(module, config)
    return (module.trainer.fit_loop.total_batch_idx + 1) % config.frequency == 0


def is_due_after_epoch(module: pl.LightningModule, config: LRSchedulerConfig) -> bool:
    """Return whether a step is due after the epoch that ends, or in whose evaluation a metric became known."""
    return (module.trainer.current_epoch + 1) % config.frequency == 0


def make_step(module: pl.LightningModule, config: LRSchedulerConfig, metric: float | None) -> None:
    """Step a scheduler.

    Raises:
        ConfigError: If the scheduler raises.
    """
    try:
        module.lr_scheduler_step(config.scheduler, metric)
    except UserError:
        raise
    except Exception as error:
        raise _failed(config, f"when it was stepped, {_how_often(config)}", error) from error


def try_out(module: pl.LightningModule, config: LRSchedulerConfig, iterations: int) -> None:
    """Raise ConfigError if a scheduler of torch cannot take the steps of a fit that makes so many iterations more.

    A copy of it takes them. One of a user's own may do anything in a step, so it is not tried.
    """
    scheduler: Any = config.scheduler
    theirs = type(scheduler).__module__ != "torch.optim.lr_scheduler" or overrides(
        module, pl.LightningModule, "lr_scheduler_step"
    )
    if theirs or config.reduce_on_plateau:
        return
    trainer: Any = module.trainer
    before = trainer.fit_loop.total_batch_idx + 1
    if config.interval == "epoch":
        before, iterations = trainer.current_epoch, iterations // int(trainer.num_training_batches)
    steps = (before + iterations) // config.frequency - before // config.frequency
    optimizer = scheduler.optimizer
    tensors = [x for group in optimizer.param_groups for x in group["params"]]
    tensors += [x for state in optimizer.state.values() for x in state.values()]
    try:
        # a copy has everything of its own but parameters and their moments
        scheduler = copy.deepcopy(scheduler, {id(x): x for x in tensors})
    except Exception:  # of a user's function in it; what cannot be copied is not tried, and is told of when it fails
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(min(steps, MOST_TRIED)):
                scheduler.step()
    except Exception as error:
        where = f"in the {steps:,} steps of this training, {_how_often(config)}"
        raise _failed(config, where, error) from error


def _how_often(config: LRSchedulerConfig) -> str:
    unit = "epoch" if config.interval == "epoch" else "iteration"
    return f"once per {unit}" if config.frequency == 1 else f"once in {config.frequency} {unit}s"


def _failed(config: LRSchedulerConfig, where: str, error: Exception) -> ConfigError:
    kind = type(config.scheduler).__name__
    return ConfigError(f"optimizer.scheduler: {kind} fails {where}: {type(error).__name__}: {one_line(error)}")
