"""Whether the minibatch update is compiled where that is left to the run (`compile=auto`)."""

import math
from typing import Any, NamedTuple

from pytorch_lightning.callbacks import Timer

from lightning_ppo.speed.compiled_gradients import missing_compiler
from lightning_ppo.speed.hardware import has_convolutions
from lightning_ppo.speed.shortcuts import nobody_listens
from lightning_ppo.update.sharding import is_sharded
from lightning_ppo.update.trainer_checks import BACKWARD

WORTH_IT = 50_000
"""Optimizer steps of a training from which compiling pays, also where nothing is in the compiler's cache
(docs/speed.md)."""
STEPS_PER_SECOND = 1_000
"""About as many optimizer steps as an uncompiled update of a small network makes in a second, for budgets of time."""
LOSSES = ("minibatch_loss", "policy_loss", "value_loss")
"""Methods of `PPO` that are compiled."""


class Choice(NamedTuple):
    """Whether an update is compiled, and why."""

    compiled: bool
    because: str


def choose(module: Any, data: Any, trainer: Any) -> Choice:
    """Return whether `compile=auto` compiles the update of a fit.

    It does for long trainings, and only what is known to work: what comes along, with no code of the user's own in or
    around the loss. The length is that of the whole training, so that a resumed run does what the undisturbed one did.
    Ranks choose alike, since nothing here depends on a rank.

    Args:
        module: A `PPO`.
        data: Its data module.
        trainer: The Trainer, before or in a fit.
    """
    steps = _optimizer_steps(module, data, trainer)
    if steps < WORTH_IT:
        return Choice(False, "a short run")
    against = speaks_against(module, trainer)
    return Choice(against is None, against or "a long run")


def _optimizer_steps(module: Any, data: Any, trainer: Any) -> float:
    """Return the optimizer steps of the whole training, 0 where nothing is known of its rollouts."""
    if not hasattr(data, "num_steps") or trainer.fast_dev_run:
        return 0
    size = data.num_steps * data.num_envs
    rollouts = [math.inf]
    if module.total_env_steps:
        rollouts.append(module.total_env_steps // (size * trainer.world_size))
    elif trainer.max_epochs not in (None, -1):
        rollouts.append((trainer.max_epochs or 0) * data.rollouts_per_epoch)
    limits = [min(rollouts) * module.update_settings.most_epochs * (size // module.update_settings.minibatch_size)]
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    limits += [_seconds(callback) * STEPS_PER_SECOND for callback in trainer.callbacks if isinstance(callback, Timer)]
    return min(limits)


def _seconds(timer: Timer) -> float:
    """Return how long a Timer lets a training take in all."""
    left = timer.time_remaining()
    return math.inf if left is None else timer.time_elapsed() + left


def speaks_against(module: Any, trainer: Any) -> str | None:
    """Return why an update is not compiled however long the training is; None if nothing speaks against it."""
    device = trainer.strategy.root_device
    if module.plain:
        return "plain=true"
    if module.objective.trust_region:
        return "objective=trpo"
    if is_sharded(trainer):
        return "ranks share the weights out"
    if not nobody_listens(module, *BACKWARD, trainer=trainer):
        return "backward passes are listened to, or scaled"
    if own_code(module):
        return "code of your own in the loss; compile=true tries"
    if device.type == "cpu" and has_convolutions(module.policy):
        return "convolutions on a CPU gain nothing"
    # a rank that has none tells the others when all compile
    return missing_compiler(device) if trainer.world_size == 1 else None


def own_code(module: Any) -> bool:
    """Return whether some of what is compiled is code of the user's own, which may do more than compute."""
    parts = (*module.policy.modules(), *module.loss_terms.modules(), module.objective)
    homes = {type(part).__module__.partition(".")[0] for part in parts}
    homes |= {getattr(module, name).__func__.__module__.partition(".")[0] for name in LOSSES}
    return not homes <= {"lightning_ppo", "torch"}
