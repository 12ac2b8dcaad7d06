"""Combinations of module, data and Trainer that cannot work, each explained with the setting to use instead."""

import inspect
import os
from collections.abc import Collection, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_ppo.config import UpdateConfig, check_rollout_size, flat, nearest
from lightning_ppo.distributed import gather_objects
from lightning_ppo.errors import CheckpointError, ConfigError, NonFiniteError
from lightning_ppo.hyperparameters import plain
from lightning_ppo.policy import ActorCritic
from lightning_ppo.policy_objectives import PolicyGradient
from lightning_ppo.trainer_checks import check_strategy_name


def check_trust_region(update: UpdateConfig, policy: ActorCritic, compile: bool, loss_terms: Collection[Any]) -> None:
    """Raise ConfigError for settings that an objective with a trust region rules out."""
    if policy.shares_parameters():
        raise ConfigError(
            "policy.shared_trunk, policy.network: a step within the trust region moves the policy alone, and one of "
            "the critic through shared layers would leave the region; give each its own, or take a first-order "
            "objective such as clip"
        )
    if any(isinstance(module, _BatchNorm) for module in policy.modules()):
        raise ConfigError(
            "policy.network: batch normalisation moves the policy with each minibatch of the critic, out of the trust "
            "region; normalise otherwise (LayerNorm), or take a first-order objective such as clip"
        )
    if loss_terms:
        raise ConfigError("loss_terms: trpo takes none; remove them, or take a first-order objective such as clip")
    if update.target_kl is not None:
        raise ConfigError("update.target_kl: trpo bounds KL by update.trust_region.max_kl; set target_kl to null")
    if compile:
        raise ConfigError("compile: the Fisher-vector products of trpo are not compiled; set it to false")


def check_trainer_settings(settings: dict[str, Any]) -> None:
    """Raise ConfigError for settings that `pl.Trainer` does not have, or whose type it does not take.

    Lightning itself looks at some of them only when it uses them, in the middle of a run.
    """
    hints = get_type_hints(pl.Trainer.__init__)
    known = inspect.signature(pl.Trainer).parameters
    for name, value in settings.items():
        if name in ("callbacks", "logger") and value not in (None, True, False):
            raise ConfigError(f"trainer.{name}: name classes in the setting {name.removesuffix('s')}s instead")
        if name not in known:
            raise ConfigError(f"trainer.{name}: unknown setting of the Trainer; did you mean {nearest(name, known)}?")
        if not _fits(value, hints[name]):
            raise ConfigError(f"trainer.{name}: expected {_describe(hints[name])}, got {value!r}")
        if name in ("plugins", "barebones") and value:
            raise ConfigError(f"trainer.{name}: is for use from Python; a run directory has checkpoints and logs")
        if name == "strategy":
            check_strategy_name(value)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value can be what a type hint says."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    kind = origin or hint
    if kind is int and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, float | int)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))


def cluster_environment() -> list[ClusterEnvironment]:
    """Return the plugin for a process that srun started: SLURM's, without Lightning's saving inside a signal handler.

    Raises:
        ConfigError: If the job asks for its processes in a way that Lightning cannot read.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    try:
        return [SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:
        raise ConfigError(f"SLURM: {error}") from None


def check_launch(trainer: pl.Trainer) -> None:
    """Raise ConfigError unless as many processes were started as the Trainer is told to use, lest it waits for others.

    Args:
        trainer: The Trainer.
    """
    if TorchElasticEnvironment.detect():
        launcher, each, total = "torchrun", int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        option, nodes = "--nproc_per_node", total // each
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            rank_zero_warn(
                'torchrun: a restarted rank may get the address of one that is gone ("Connection refused"); '
                "start with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv_backend=c10d or --standalone"
            )
    elif SLURMEnvironment.detect():
        launcher, total = "SLURM", int(os.environ["SLURM_NTASKS"])
        each, nodes = int(os.environ.get("SLURM_NTASKS_PER_NODE", "1")), int(os.environ.get("SLURM_NNODES", "1"))
        option = "--ntasks-per-node"
    else:
        if trainer.num_nodes > 1 and "MASTER_ADDR" not in os.environ:
            raise ConfigError(
                f"trainer.num_nodes: {trainer.num_nodes} nodes need a launcher on each: torchrun, or srun in a job"
            )
        return
    if each * nodes != total:
        raise ConfigError(f"{launcher}: started {total} processes, not {each} on each of {nodes} nodes ({option})")
    for name, configured, started, remedy in (
        ("devices", trainer.num_devices, each, option),
        ("num_nodes", trainer.num_nodes, nodes, "--nodes" if launcher == "SLURM" else "--nnodes"),
    ):
        if configured != started:
            raise ConfigError(
                f"trainer.{name}: is {configured}, but {launcher} started {started}; "
                f"set trainer.{name}={started}, or {remedy}={configured}"
            )


def _check_ranks(settings: dict[str, Any]) -> None:
    """Raise ConfigError on every rank unless all have the same settings."""
    everyones = gather_objects({key: repr(value) for key, value in flat(settings).items()})
    for other, theirs in enumerate(everyones):
        for key, value in everyones[0].items():
            if theirs.get(key) != value:
                raise ConfigError(f"{key}: {value} on rank 0, {theirs.get(key)} on rank {other}; start all alike")


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
    if module.compile_update and trainer.precision == "16-mixed":
        raise ConfigError("compile: not available with trainer.precision=16-mixed; use bf16-mixed or 32-true")
    if data is None or not hasattr(data, "num_steps"):
        return
    settings, left_out = plain({**module.hparams, **data.hparams})
    if left_out:
        names = ", ".join(f"{name} ({kind})" for name, kind in left_out.items())
        rank_zero_warn(f"checkpoints hold plain data, so not {names}: give it again on loading one")
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
    steps = update.epochs * size // update.minibatch_size * max(1, len(trainer.optimizers))
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


def _check_processes(module: Any, data: Any, trainer: pl.Trainer) -> None:
    """Raise ConfigError where rollouts cannot be collected elsewhere, or not learnt from one update later."""
    overlap = data.rollout_settings.overlap
    if not overlap and data.rollout_settings.processes == 1:
        return
    setting, alone = ("rollout.overlap", "false") if overlap else ("rollout.processes", "1")
    if overlap and module.objective.trust_region:
        reason = "the trust region of trpo lies around the policy that collected; set it to false, or objective=clip"
    elif overlap and isinstance(module.objective, PolicyGradient):
        reason = "policy_gradient has no ratio to weigh what an older policy did; set it to false, or objective=clip"
    elif data.env_settings.id == "":
        reason = "an environment that is built already cannot go to another process; name it by id or import path"
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
        f"{needed[column]} is {value} in {where}; the weights are those from before this iteration; "
        "lower optimizer.learning_rate, or check the rewards"
    )
