"""Private names of other libraries, to check when one of them has a new version.

Nothing here is a shortcut, so `plain` does not change it.
"""

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.cloud_io import _load
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.core import optimizer as lightning
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from pytorch_lightning.utilities.model_helpers import _restricted_classmethod
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer

restricted_classmethod: Any = _restricted_classmethod
"""Makes a class method that cannot be called on an instance, which would leave the instance as it is."""


def load_plain(source: Any) -> Any:
    """Return plain data and tensors, on the CPU, from a path, a URL or an open file."""
    return _load(source, map_location="cpu", weights_only=True)


def trainer_of(module: pl.LightningModule) -> Any:
    """Return the Trainer of a module, or None; `module.trainer` raises where there is none."""
    return module._trainer


def latest_metrics(trainer: Any) -> Mapping[str, Any]:
    """Return the metrics of the iteration, evaluation or epoch that the Trainer is at the end of.

    `trainer.callback_metrics` also has those of before.
    """
    return trainer._logger_connector.metrics["callback"]


def ends_epoch(trainer: Any) -> bool:
    """Return whether the iteration that ends is the last of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_launched(trainer: Any) -> bool:
    """Return whether the Trainer started this process with `multiprocessing` (`ddp_spawn`, `ddp_fork`)."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def read_optimizers(returned: Any, interval: str) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Return optimizers and schedulers in any of the forms in which `configure_optimizers` may return them.

    Args:
        returned: By `configure_optimizers`.
        interval: Of schedulers that name none, `step` or `epoch`.

    Raises:
        MisconfigurationException: If it is none of these forms.
        KeyError: As for a dict without `optimizer`.
    """
    optimizers, schedulers, monitor = lightning._configure_optimizers(returned)
    given = [
        {"interval": interval, "monitor": monitor} | (dict(entry) if isinstance(entry, dict) else {"scheduler": entry})
        for entry in schedulers
    ]
    return optimizers, lightning._configure_schedulers_automatic_opt(given, None)


def check_attached(optimizers: list[Optimizer], configs: list[LRSchedulerConfig]) -> None:
    """Raise MisconfigurationException if a scheduler belongs to another optimizer than those given."""
    lightning._validate_optimizers_attached(optimizers, configs)


def compiled_as_a_whole(module: nn.Module) -> str | None:
    """Return how a LightningModule or its policy was compiled, as its user wrote it; None if it was not."""
    compiler = sys.modules.get("torch._dynamo")  # without it nothing has been compiled
    if getattr(module, "_compiler_ctx", None) is not None:
        return "torch.compile(model)"
    if module._compiled_call_impl is not None:
        return "model.compile()"
    compiled = compiler is not None and isinstance(getattr(module, "policy", None), compiler.OptimizedModule)
    return "torch.compile(model.policy)" if compiled else None


def listener_of(module: nn.Module) -> str | None:
    """Return what of its user's hears of each pass through a module and back; None if nothing does."""
    if torch.is_anomaly_enabled():
        return "anomaly detection looks at each operation"
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    if any(getattr(part, kind) for part in module.modules() for kind in kinds):
        return "there are hooks on layers"
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters())
    return "there are hooks on parameters" if hooked else None


def steps_between_saves(checkpoint: Any) -> int:
    """Return the `every_n_train_steps` of a ModelCheckpoint, 0 for none."""
    return checkpoint._every_n_train_steps


def judge_after_evaluations(callback: Any) -> int:
    """Have a callback stop or save after evaluations, not after epochs; return its `every_n_epochs`, else 1."""
    if isinstance(callback, EarlyStopping):
        callback._check_on_train_epoch_end = False
    if not isinstance(callback, ModelCheckpoint):
        return 1
    callback._save_on_train_epoch_end = False
    return callback._every_n_epochs


def has_train_time_interval(checkpoint: Any) -> bool:
    """Return whether a ModelCheckpoint has a `train_time_interval`."""
    return checkpoint._train_time_interval is not None


def syncs_batch_norm(trainer: Any) -> bool:
    """Return whether the Trainer has `sync_batchnorm`."""
    return trainer._accelerator_connector._layer_sync is not None


def uploads_models(trainer: Any) -> bool:
    """Return whether the Trainer has a `model_registry`."""
    return trainer._model_registry is not None


def strategy_argument(strategy: Any, name: str) -> Any:
    """Return an argument that a strategy was given, None for strategies that have none of this name."""
    return getattr(strategy, f"_{name}", None)
