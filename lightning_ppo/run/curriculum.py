"""A curriculum: environments are told how much of the training is over."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_ppo.collection.datamodule import RolloutDataModule
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.ppo import PPO

HOOK = "set_progress"
"""Method of environments, or of wrappers, that `SetProgress` calls."""


class SetProgress(Callback):
    """Calls `set_progress(progress)` of every environment before each rollout is begun.

    Progress is the share of the training budget that is used, in [0, 1], as schedules follow it (`PPO.progress`). It
    reaches all copies, wherever they are stepped (see `RolloutDataModule.call`).

    Args:
        evaluation: Whether evaluation environments are told, too; else they keep what they are built with.

    Raises:
        ConfigError: If neither the environment nor a wrapper of it has the method.
    """

    def __init__(self, evaluation: bool = False) -> None:
        self.evaluation = evaluation

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the environments before their first reset; a resumed run has told its environments already."""
        if trainer.ckpt_path is None:
            self._tell(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the environments where training begins, or goes on."""
        self._tell(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the environments after an iteration."""
        self._tell(trainer, pl_module)

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, RolloutDataModule) or not isinstance(pl_module, PPO):
            raise ConfigError("SetProgress: needs PPO and a RolloutDataModule")
        data.call(HOOK, pl_module.progress, evaluation=self.evaluation)
