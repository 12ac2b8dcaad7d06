"""Lightning features that do not work here, and the setting to use instead; docs/concepts.md lists all of them."""

import re
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import MPIEnvironment, XLAEnvironment
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)
from pytorch_lightning.plugins import (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    FSDPPrecision,
    HalfPrecision,
    TransformerEnginePrecision,
    XLACheckpointIO,
    XLAPrecision,
)
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.compile import to_uncompiled
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from lightning_ppo.speed.internals import (
    compiled_as_a_whole,
    has_train_time_interval,
    strategy_argument,
    syncs_batch_norm,
    uploads_models,
)
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.overriding import overrides

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")

STRATEGIES = ("auto", "single_device", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp2")

REFUSED_CALLBACKS: dict[type[Callback], str] = {
    LearningRateFinder: "the loss of a rollout does not tell which learning rate is good; set optimizer.learning_rate",
    BatchSizeFinder: "a batch is a rollout here; set env.num_envs, rollout.num_steps and update.minibatch_size, and "
    "update.micro_batch_size where a minibatch does not fit into memory",
    GradientAccumulationScheduler: "a batch is a whole rollout here; set update.micro_batch_size",
    BackboneFinetuning: "all layers share optimizer.learning_rate; freeze and free them in a BaseFinetuning of yours",
    ModelPruning: "what acts would not be what is learnt; set policy.hidden_sizes, or prune the trained agent",
    SpikeDetection: "losses of one policy and the next cannot be compared; bound the update by update.target_kl",
    StochasticWeightAveraging: "it forgets the training that ends before or after its epochs; use WeightAveraging or "
    "EMAWeightAveraging",
}

REFUSED_PLUGINS: dict[type, str] = {
    **dict.fromkeys(
        (
            *(BitsandbytesPrecision, DeepSpeedPrecision, FSDPPrecision, HalfPrecision),
            *(TransformerEnginePrecision, XLAPrecision),
        ),
        f"set trainer.precision to one of {', '.join(PRECISIONS)}",
    ),
    **dict.fromkeys((MPIEnvironment, XLAEnvironment), "start the processes with torchrun or srun"),
    XLACheckpointIO: "leave it out; the trainer writes checkpoints on one device and with DDP",
}

MANUAL = ("on_before_zero_grad", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
"""Hooks that Lightning calls in automatic optimisation only."""

BACKWARD = ("on_before_backward", "on_after_backward", "backward")
"""Hooks around backward passes, which there are none of in a compiled update and in one with a trust region."""


def check_trainer(trainer: Any) -> None:
    """Raise ConfigError for flags, plugins and callbacks of the Trainer that do not work here.

    Once the Trainer has a module, it also warns of hooks that a fit never calls.
    """
    module: Any = trainer.lightning_module
    if module is not None:
        _check_compiled(module)
    _check_strategy(trainer.strategy)
    _check_flags(trainer)
    _check_plugins(trainer.strategy)
    for callback in trainer.callbacks:
        for kind, remedy in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise ConfigError(f"{kind.__name__}: {remedy}")
        if isinstance(callback, EMAWeightAveraging) and callback.update_every_n_steps != 1:
            raise ConfigError(
                f"EMAWeightAveraging(update_every_n_steps={callback.update_every_n_steps}): averages are taken once an "
                "iteration, after many optimizer steps; set it to 1, and decay to what suits iterations"
            )
        if isinstance(callback, ModelCheckpoint) and has_train_time_interval(callback):
            raise ConfigError(
                "ModelCheckpoint(train_time_interval=...): Lightning never looks at it in manual optimisation; set "
                "every_n_epochs, or checkpoint.every_env_steps"
            )
    if module is not None and trainer.training:
        _warn_of_silent_hooks(module, trainer)


def _check_compiled(module: Any) -> None:
    """Raise ConfigError for a module or policy that is compiled as a whole."""
    given = compiled_as_a_whole(module)
    if given == "torch.compile(model)":
        to_uncompiled(module)
    if given is not None:
        raise ConfigError(f"{given}: the update is compiled here, not the module; set compile=true, PPO(compile=True)")


def _check_flags(trainer: Any) -> None:
    if trainer.gradient_clip_val or trainer.gradient_clip_algorithm:
        flag = "gradient_clip_val" if trainer.gradient_clip_val else "gradient_clip_algorithm"
        raise ConfigError(f"trainer.{flag}: PPO clips its own gradients by norm; set update.max_grad_norm instead")
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            "trainer.accumulate_grad_batches: a batch is a whole rollout here; set update.micro_batch_size instead, "
            "whose gradients add up to those of update.minibatch_size"
        )
    if trainer.overfit_batches:
        raise ConfigError("trainer.overfit_batches: no rollout comes twice; set update.epochs to learn more of each")
    for stage in ("val", "test"):
        limit = getattr(trainer, f"limit_{stage}_batches")
        if isinstance(limit, float) and 0 < limit < 1:
            setting = "evaluation.episodes" if stage == "val" else "evaluation.final_episodes"
            raise ConfigError(f"trainer.limit_{stage}_batches: an evaluation is one batch; set {setting} instead")
    if trainer.precision not in PRECISIONS:
        why = "; steps are lost in weights of half precision, bf16-mixed keeps them in float32"
        half = why if trainer.precision in ("bf16-true", "16-true") else ""
        raise ConfigError(f"trainer.precision: expected one of {', '.join(PRECISIONS)}, got {trainer.precision}{half}")
    if syncs_batch_norm(trainer):
        raise ConfigError("trainer.sync_batchnorm: batch statistics are not shared by ranks; normalise with LayerNorm")
    if uploads_models(trainer):
        raise ConfigError("trainer.model_registry: nothing is uploaded; checkpoints are files, see checkpoint.keep")


def _check_strategy(strategy: Any) -> None:
    one = isinstance(strategy, SingleDeviceStrategy) and strategy.root_device.type in ("cpu", "cuda")
    ddp = isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    sharded = isinstance(strategy, ModelParallelStrategy) and strategy.root_device.type in ("cpu", "cuda")
    if not one and not ddp and not sharded:
        raise ConfigError(
            f"trainer.strategy: {type(strategy).__name__} on {strategy.root_device.type} does not work here; take one "
            f"device (trainer.accelerator=cpu or gpu, trainer.devices=1), or one of {', '.join(STRATEGIES[2:])}"
        )
    if sharded and strategy_argument(strategy, "save_distributed_checkpoint"):
        raise ConfigError(
            "ModelParallelStrategy: checkpoints are whole files here; take strategy='fsdp2', which is "
            "ModelParallelStrategy(save_distributed_checkpoint=False)"
        )
    for name in ("ddp_comm_hook", "model_averaging_period"):
        if strategy_argument(strategy, name) is not None:
            raise ConfigError(f"DDPStrategy({name}=...): gradients are averaged here at every step; leave it out")


def _check_plugins(strategy: Any) -> None:
    plugins = strategy.precision_plugin, strategy.checkpoint_io, getattr(strategy, "cluster_environment", None)
    for plugin in plugins:
        for kind, remedy in REFUSED_PLUGINS.items():
            if isinstance(plugin, kind):
                raise ConfigError(f"{kind.__name__}: does not work here; {remedy}")


def _warn_of_silent_hooks(module: Any, trainer: Any) -> None:
    """Warn of overridden hooks that this fit never calls."""
    silent = dict.fromkeys(MANUAL, ", which optimises manually")
    if module.compile_setting is True or module.objective.trust_region:
        reason = " with compile=true" if module.compile_setting is True else " with objective=trpo"
        silent |= dict.fromkeys(BACKWARD, reason)
    owners: list[tuple[Any, type]] = [(module, pl.LightningModule), *((c, Callback) for c in trainer.callbacks)]
    for owner, base in owners:
        for hook, reason in silent.items():
            if overrides(owner, base, hook):
                rank_zero_warn(
                    f"{type(owner).__name__}.{hook} is never called by PPO{reason}; on_before_optimizer_step is, "
                    "before every step"
                )


def check_strategy_name(name: str) -> None:
    """Raise ConfigError for the name of a strategy that does not work here, before Lightning asks for its packages."""
    if re.sub("_find_unused_parameters_(true|false)$", "", name) not in STRATEGIES:
        raise ConfigError(f"trainer.strategy: expected one of {', '.join(STRATEGIES)}, got {name}")
