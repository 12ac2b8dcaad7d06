"""Hand the metrics of an iteration to Lightning without the cost of registering each of them anew."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_ppo.optimization import overrides


def log_metrics(module: pl.LightningModule, metrics: Mapping[str, float]) -> None:
    """Log metrics as `module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)` does.

    Each time a metric is logged, Lightning checks the arguments and moves its record to the device, attribute by
    attribute, which takes 20 times as long as taking in the value. Metrics that it knows are given the value only,
    except one, with which it prepares its records at the start of an epoch.

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
