"""Skip what Lightning does around each backward pass, each optimizer step and each metric, if nobody needs it."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.plugins.precision import DoublePrecision, MixedPrecision, Precision
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_ppo.speed.flat import FlatAdam
from lightning_ppo.support.overriding import overrides


def log_metrics(module: pl.LightningModule, metrics: Mapping[str, float]) -> None:
    """Log metrics as `module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)` does.

    Each time a metric is logged, Lightning checks the arguments and moves its result object to the device, attribute by
    attribute, which takes 20 times as long as storing the value. So only the value of known metrics is stored, except
    for one metric, with which Lightning prepares its results at the start of an epoch.

    Args:
        module: Its `training_step` is running.
        metrics: Numbers by name.
    """
    trainer: Any = module.trainer
    results, place = trainer._results, module._current_fx_name
    known: list[str] = []
    if results and not any(overrides(module, pl.LightningModule, name) for name in ("log", "log_dict")):
        known = [name for name in metrics if f"{place}.{name}" in results][1:]
    rest = {name: value for name, value in metrics.items() if name not in known}
    module.log_dict(rest, on_step=True, on_epoch=False, batch_size=1)
    values = torch.tensor([metrics[name] for name in known], device=module.device)
    for name, value in zip(known, values.unbind(), strict=True):
        results.update_metrics(f"{place}.{name}", value, 1)


def nobody_listens(module: pl.LightningModule, *hooks: str, trainer: Any = None) -> bool:
    """Return whether Lightning would add only calls of hooks that nobody overrides.

    The module's own `on_before_optimizer_step` is called in any case.
    """
    trainer = trainer or module.trainer  # before a fit the module has none
    precision = trainer.precision_plugin
    return (
        type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
        and type(precision) in (Precision, DoublePrecision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and not any(overrides(callback, pl.Callback, hook) for hook in hooks for callback in trainer.callbacks)
        and not any(overrides(module, pl.LightningModule, hook) for hook in hooks if hook != "on_before_optimizer_step")
    )


def step(module: pl.LightningModule, wrapper: LightningOptimizer, allowed: Callable[[], bool]) -> None:
    """Take a step as `wrapper.step()` does where `nobody_listens` to `on_before_optimizer_step` but the module.

    Args:
        module: Its hook is called.
        wrapper: Of the optimizer.
        allowed: Says after the hook whether the step may be taken.
    """
    optimizer = wrapper.optimizer
    wrapper._on_before_step()  # this and the call below advance Lightning's `global_step`
    module.on_before_optimizer_step(optimizer)
    if not allowed():
        return
    if isinstance(optimizer, FlatAdam):
        optimizer.bare_step()
    else:
        optimizer.step()
    wrapper._on_after_step()
