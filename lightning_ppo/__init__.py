"""Proximal Policy Optimization as a modular PyTorch Lightning framework."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ppo.config import Config
    from lightning_ppo.datamodule import RolloutDataModule
    from lightning_ppo.module import PPO
    from lightning_ppo.rollout import Episodes, Minibatch, Rollout
    from lightning_ppo.schedules import Schedule

__version__ = "0.1.0"

_HOMES = {
    "PPO": "module",
    "RolloutDataModule": "datamodule",
    "Config": "config",
    "Schedule": "schedules",
    "Rollout": "rollout",
    "Minibatch": "rollout",
    "Episodes": "rollout",
}

__all__ = ["PPO", "Config", "Episodes", "Minibatch", "Rollout", "RolloutDataModule", "Schedule"]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import lightning_ppo` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
