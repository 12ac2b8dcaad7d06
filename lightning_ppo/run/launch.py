"""Check the settings of the Trainer before it starts processes."""

import inspect
import os
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from lightning_ppo.settings.existence import check_flags
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.trainer_checks import check_strategy_name


def check_trainer_settings(settings: dict[str, Any]) -> None:
    """Raise ConfigError for settings that `pl.Trainer` does not have, or whose type it does not take.

    Lightning itself looks at some of them only when it uses them, in the middle of a run.
    """
    hints = get_type_hints(pl.Trainer.__init__)
    known = inspect.signature(pl.Trainer).parameters
    check_flags(settings, known)
    for name, value in settings.items():
        if name in ("callbacks", "logger") and value not in (None, True, False):
            raise ConfigError(f"trainer.{name}: name classes in the setting {name.removesuffix('s')}s instead")
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
