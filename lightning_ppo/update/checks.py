"""Combinations of module, data and Trainer that cannot work, each explained with the setting to use instead."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.probing import shares_parameters
from lightning_ppo.rollout.shapes import Rollout
from lightning_ppo.settings.algorithm import UpdateConfig, check_compile, check_rollout_size
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.settings.loading import flat
from lightning_ppo.speed.internals import steps_between_saves
from lightning_ppo.support.distributed import gather_objects
from lightning_ppo.support.errors import CheckpointError, ConfigError, NonFiniteError
from lightning_ppo.support.notices import warn_once
from lightning_ppo.update.policy_objectives import PolicyGradient
from lightning_ppo.update.sharding import is_sharded

_log = logging.getLogger(__name__)

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


def check_trust_region(update: UpdateConfig, policy: ActorCritic, compile: bool, loss_terms: Collection[Any]) -> None:
    """Raise ConfigError for settings that an objective with a trust region rules out."""
    if shares_parameters(policy):
        raise ConfigError(
            "policy.shared_trunk, policy.network: a step within the trust region moves the policy alone, and one of "
            "the critic through shared layers would leave the region; give each its own, or take a first-order "
            "objective such as clip"
        )
    if any(isinstance(module, BATCH_NORMS) for module in policy.modules()):
        raise ConfigError(
            "policy.network: batch normalisation moves the policy with each minibatch of the critic, out of the trust "
            "region; normalise otherwise (LayerNorm), or take a first-order objective such as clip"
        )
    if loss_terms:
        raise ConfigError("loss_terms: trpo takes none; remove them, or take a first-order objective such as clip")
    if update.micro_batch_size is not None:
        raise ConfigError(
            "update.micro_batch_size: the step of trpo needs the whole rollout at once; set it to null, or take a "
            "first-order objective such as clip"
        )
    if update.target_kl is not None:
        raise ConfigError("update.target_kl: trpo bounds KL by update.trust_region.max_kl; set target_kl to null")
    if compile:
        raise ConfigError("compile: the Fisher-vector products of trpo are not compiled; set it to false")


def _check_ranks(settings: dict[str, Any]) -> None:
    """Raise ConfigError on every rank unless all have the same settings."""
    everyones = gather_objects({key: repr(value) for key, value in flat(settings).items()})
    for other, theirs in enumerate(everyones):
        for key, value in everyones[0].items():
            if theirs.get(key) != value:
                raise ConfigError(
                    f"{key}: {value} on rank 0, {theirs.get(key)} on rank {other}; all ranks need the same settings"
                )


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
    if module.objective.trust_region and not trainer.precision.endswith("-true"):
        raise ConfigError(
            f"trainer.precision: the linear system of trpo needs 32-true or 64-true, got {trainer.precision}"
        )
    micro = module.update_settings.micro_batch_size
    if micro is not None and any(isinstance(part, BATCH_NORMS) for part in module.policy.modules()):
        rank_zero_warn(
            f"update.micro_batch_size: batch normalisation takes its statistics from {micro} rows at a time, so steps "
            "are not those of whole minibatches; normalise otherwise (LayerNorm)"
        )
    check_compile(module.compile_setting, module.plain)
    if module.compile_update and trainer.precision == "16-mixed":
        raise ConfigError("compile: not available with trainer.precision=16-mixed; use bf16-mixed or 32-true")
    if data is None or not hasattr(data, "num_steps"):
        return
    settings, left_out = plain({**module.hparams, **data.hparams, "env": data.env_settings})
    if left_out:
        names = ", ".join(f"{name} ({kind})" for name, kind in left_out.items())
        rank_zero_warn(f"checkpoints hold plain data only, so {names} is left out; give it again on loading")
    _check_ranks(settings)
    _check_processes(module, data, trainer)
    update, total, ranks = module.update_settings, module.total_env_steps, trainer.world_size
    check_rollout_size(data.num_steps, data.num_envs, update)
    module.sequence_length(data.num_steps)
    for kind in ("observation", "action"):
        ours, theirs = getattr(module, f"{kind}_space"), getattr(data, f"{kind}_space")
        if ours != theirs:
            raise CheckpointError(f"this agent was made for the {kind} space {ours}, but the environment has {theirs}")
    size = data.num_steps * data.num_envs
    steps = update.most_epochs * size // update.minibatch_size * max(1, len(trainer.optimizers))
    for callback in getattr(trainer, "callbacks", []):
        every = steps_between_saves(callback) if isinstance(callback, ModelCheckpoint) else 0
        if every and (every % steps or not update.fixed_epochs):
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


def tell_of_changes(rollout: Rollout) -> None:
    """Say once what somebody changed in a rollout after its advantages were estimated: it has no effect."""
    if names := rollout.changed():
        warn_once(
            _log,
            ("changed", *names),
            f"{' and '.join(names)} of a rollout changed after advantages had been estimated from them, which has no "
            "effect: change them in a wrapper (env.wrappers), or change the rollout's advantages and returns",
        )


def _check_processes(module: Any, data: Any, trainer: pl.Trainer) -> None:
    """Raise ConfigError where rollouts cannot be collected elsewhere, or not learnt from one update later."""
    overlap = data.rollout_settings.overlap
    if not overlap and data.rollout_settings.processes == 1:
        return
    setting, alone = ("rollout.overlap", "false") if overlap else ("rollout.processes", "1")
    if overlap and module.objective.trust_region:
        reason = "the trust region of trpo is centred on the policy that collected; set it to false, or objective=clip"
    elif overlap and isinstance(module.objective, PolicyGradient):
        reason = "policy_gradient has no ratio to correct for an older policy; set it to false, or objective=clip"
    elif data.env_settings.id == "":
        reason = "an environment that is already built cannot be sent to another process; name it by id or import path"
    elif is_sharded(trainer):
        reason = f"ranks share the weights out, and other processes are none; set it to {alone}"
    elif trainer.strategy.root_device.type != "cpu":
        reason = f"other processes collect on the CPU; set it to {alone}, or trainer.accelerator=cpu"
    else:
        return
    raise ConfigError(f"{setting}: {reason}")


def non_finite(
    statistics: Tensor, names: Sequence[str], needed: Sequence[str], iterations: int, env_steps: int
) -> NonFiniteError:
    """Return the error that names the first statistic that is not finite.

    Args:
        statistics: (epochs, minibatches, statistics) of this rank.
        names: Of the statistics.
        needed: Of those that must be finite.
        iterations: Before this one.
        env_steps: Before this iteration.
    """
    statistics = torch.stack([statistics[..., names.index(name)] for name in needed], -1)
    if torch.isfinite(statistics).all():
        return NonFiniteError("a loss or gradient of another rank is not finite; see the message of that rank")
    epoch, minibatch, column = torch.nonzero(~torch.isfinite(statistics))[0].tolist()
    value = statistics[epoch, minibatch, column].item()
    where = f"minibatch {minibatch + 1} of update epoch {epoch + 1}, iteration {iterations + 1} ({env_steps} steps)"
    return NonFiniteError(
        f"{needed[column]} is {value} in {where}; nothing was learnt from there on; "
        "lower optimizer.learning_rate, or check the rewards"
    )
