"""When to evaluate where no setting says so: as often as a tenth of the time allows."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.run.callbacks import as_ppo
from lightning_ppo.speed.internals import judge_after_evaluations
from lightning_ppo.support.distributed import sum_over_ranks

SHARE = 0.1
"""Steps of evaluations for each step of training, at most."""


class EvaluationPace(Callback):
    """Has the Trainer evaluate after the first epoch, after the last, and between them as often as `SHARE` allows.

    It counts steps, which a resumed run makes as the undisturbed one did, instead of time. A step of training is one of
    the vector environment or one of an optimizer. A step of an evaluation steps the same kind of environment, acts, and
    learns nothing; so it takes no longer than the average step of training, whether copies are stepped one after the
    other or thousands in one call. Where more copies play than are trained on, it counts as that many times more.

    The evaluation after the last epoch is not counted, so that a run that is made in pieces is evaluated when the whole
    run is. Callbacks that stop or save on a metric of evaluations (`eval/...`) do so after each evaluation, others
    still after each epoch. The pace goes last in the list of callbacks, since those before it may end the training.
    """

    def __init__(self) -> None:
        self._limit: int | float = 0
        self._due = True

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        """Have what monitors evaluations wait for them."""
        for callback in trainer.callbacks if stage == "fit" else ():
            monitor = getattr(callback, "monitor", None)
            if str(monitor).startswith("eval/") and (every := judge_after_evaluations(callback)) > 1:
                rank_zero_warn(
                    f"{type(callback).__name__}(monitor={monitor!r}, every_n_epochs={every}) saves only where such an "
                    f"epoch happens to be evaluated; set evaluation.every_n_epochs={every}"
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember how the Trainer evaluates when it does."""
        self._limit, self._due = trainer.limit_val_batches, True

    def on_train_batch_end(
        self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the Trainer evaluate, should the epoch end here, or not."""
        module, data = as_ppo(pl_module), trainer.datamodule
        made = module.iterations * data.num_steps + trainer.global_step
        copies = trainer.world_size * min(data.evaluation_settings.num_envs, data.num_envs)
        self._due = module.evaluation_results.env_steps / copies <= SHARE * made
        trainer.limit_val_batches = self._limit if self._due or _ends(trainer) else 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Episodes,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the steps of an evaluation that was due, before any checkpoint is written."""
        if self._due and not trainer.sanity_checking:
            steps = sum_over_ranks(batch.lengths.sum().to(pl_module.device))
            as_ppo(pl_module).evaluation_results.env_steps += int(steps)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the Trainer finish an evaluation in which a checkpoint was written."""
        trainer.limit_val_batches = self._limit

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the Trainer as it was."""
        trainer.limit_val_batches = self._limit


def _ends(trainer: pl.Trainer) -> bool:
    """Return whether the epoch that ends is the last."""
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or last_epoch or last_step)
