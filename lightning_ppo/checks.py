"""Combinations of module, data and Trainer that cannot work, each explained with the setting to use instead."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_ppo.config import PolicyConfig, UpdateConfig, check_rollout_size
from lightning_ppo.errors import CheckpointError, ConfigError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_trust_region(update: UpdateConfig, policy: PolicyConfig, compile: bool) -> None:
    """Raise ConfigError for settings that an objective with a trust region rules out."""
    if policy.shared_trunk:
        raise ConfigError(
            "policy.shared_trunk: a step within the trust region moves the policy alone, and one of the critic through "
            "a shared trunk would leave the region; set it to false, or take a first-order objective such as clip"
        )
    if update.target_kl is not None:
        raise ConfigError("update.target_kl: trpo bounds KL by update.trust_region.max_kl; set target_kl to null")
    if compile:
        raise ConfigError("compile: the Fisher-vector products of trpo are not compiled; set it to false")


def check_trainer(trainer: pl.Trainer) -> None:
    """Raise ConfigError for Trainer flags that manual optimisation over whole rollouts rules out."""
    if trainer.gradient_clip_val:
        raise ConfigError("trainer.gradient_clip_val: PPO clips its own gradients; set update.max_grad_norm instead")
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            "trainer.accumulate_grad_batches: a batch is a whole rollout here; set update.minibatch_size instead"
        )
    if trainer.precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision: expected one of {', '.join(PRECISIONS)}, got {trainer.precision}")


def check_fit(module: Any, data: Any, trainer: pl.Trainer) -> None:
    """Raise an error if module, data module and the Trainer's callbacks do not go together.

    Args:
        module: A `PPO`.
        data: A `RolloutDataModule`; others are not checked.
        trainer: The Trainer.

    Raises:
        ConfigError: If a size or a callback's cadence cannot work.
        CheckpointError: If the module was made for other spaces than the environment has.
    """
    if module.objective.trust_region and trainer.precision != "32-true":
        raise ConfigError(f"trainer.precision: the linear system of trpo needs 32-true, got {trainer.precision}")
    if data is None or not hasattr(data, "num_steps"):
        return
    update, total, ranks = module.update_settings, module.total_env_steps, trainer.world_size
    check_rollout_size(data.num_steps, data.num_envs, update)
    for kind in ("observation", "action"):
        ours, theirs = getattr(module, f"{kind}_space"), getattr(data, f"{kind}_space")
        if ours != theirs:
            raise CheckpointError(f"this agent was made for the {kind} space {ours}, but the environment has {theirs}")
    size = data.num_steps * data.num_envs
    steps = update.epochs * size // update.minibatch_size
    for callback in getattr(trainer, "callbacks", []):
        every = getattr(callback, "_every_n_train_steps", 0) if isinstance(callback, ModelCheckpoint) else 0
        if every and (every % steps or update.target_kl is not None):
            raise ConfigError(
                f"ModelCheckpoint(every_n_train_steps={every}) would seldom or never save: global_step advances by "
                f"{steps} optimizer steps per iteration; use every_n_epochs, an epoch is "
                f"{data.rollouts_per_epoch} iterations (rollouts_per_epoch)"
            )
    if total and total < size * ranks:
        raise ConfigError(
            f"total_env_steps: {total} is less than one rollout of {data.num_steps} steps x {data.num_envs} envs x "
            f"{ranks} ranks"
        )
