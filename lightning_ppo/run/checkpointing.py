"""Callbacks that write checkpoints."""

import logging
import math
import os
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.run.callbacks import as_ppo
from lightning_ppo.support.distributed import max_over_ranks

_log = logging.getLogger(__name__)

SHARE = 0.08
"""Of the time, at most, that goes into writing last.ckpt: below a tenth, also where the state grows."""


QUICK = 0.1
"""Seconds up to which it is written whenever it is due."""


class LastCheckpoint(Checkpoint):
    """Writes the state of the run at ends of epochs, after the epoch's evaluation and log.

    Where that takes long, epochs are left out, so that less than a tenth of the time goes into it.

    Args:
        path: The file.
        every_env_steps: Environment steps between two writes, at least; None writes after every epoch.
    """

    def __init__(self, path: str | os.PathLike[str], every_env_steps: int | None = None) -> None:
        self.path = path
        self.every_env_steps = every_env_steps
        self._written_at = 0
        self._began, self._took = -math.inf, 0.0
        self._said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run resumes."""
        self._written_at = as_ppo(pl_module).env_steps

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, if it is time."""
        env_steps = as_ppo(pl_module).env_steps
        if env_steps - self._written_at >= (self.every_env_steps or 1) and not self._too_soon(pl_module):
            self._began = time.perf_counter()
            trainer.save_checkpoint(os.fspath(self.path))
            self._took = time.perf_counter() - self._began
            self._written_at = env_steps

    def _too_soon(self, pl_module: pl.LightningModule) -> bool:
        """Return whether on some rank writing again would take more than its share of the time."""
        pause = self._took / SHARE if self._took > QUICK else 0.0
        too_soon = time.perf_counter() - self._began < pause
        if not max_over_ranks(torch.tensor([int(too_soon)], device=pl_module.device)):
            return False
        if not self._said:
            rank_zero_only(_log.info)(
                f"Writing {os.path.basename(self.path)} takes {self._took:.1f} s; it is not written more often than "
                f"every {pause:.0f} s, so that training does not wait for it."
            )
        self._said = True
        return True


class RecordConfig(Callback):
    """Puts the settings of a run into its checkpoints, so that resuming needs no other file.

    Args:
        settings: Plain dicts, lists and scalars.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings."""
        checkpoint["config"] = self.settings


class RelocatableCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best score again after its directory was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state, with the paths of files that now lie in this directory."""
        moved = dict(state_dict)
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = self._here(moved.get(name, ""))
        moved["best_k_models"] = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        moved["dirpath"] = self.dirpath
        super().load_state_dict(moved)

    def _here(self, path: str) -> str:
        return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path
