"""Proximal Policy Optimization as a modular PyTorch Lightning framework."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ppo.collection.datamodule import RolloutDataModule
    from lightning_ppo.rollout.shapes import Episodes, Minibatch, Rollout
    from lightning_ppo.run.training import train
    from lightning_ppo.settings.schedules import Schedule
    from lightning_ppo.settings.sections import Config
    from lightning_ppo.update.ppo import PPO

__version__ = "0.1.0"

_HOMES = {
    "PPO": "update.ppo",
    "RolloutDataModule": "collection.datamodule",
    "Config": "settings.sections",
    "Schedule": "settings.schedules",
    "Rollout": "rollout.shapes",
    "Minibatch": "rollout.shapes",
    "Episodes": "rollout.shapes",
    "train": "run.training",
}

__all__ = ["PPO", "Config", "Episodes", "Minibatch", "Rollout", "RolloutDataModule", "Schedule", "train"]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import lightning_ppo` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if not _HOMES[name].startswith("settings."):
        importlib.import_module(f"{__name__}.speed.waiting").sleep_while_waiting()
        importlib.import_module(f"{__name__}.speed.light_lightning")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
