"""Videos of the agent during training, into the run directory and the loggers that show them."""

import os
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_ppo.collection.datamodule import RolloutDataModule
from lightning_ppo.evaluation.video import Preview, Stage, VideoFile
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.ppo import PPO


class RecordVideo(Callback):
    """Plays and films the agent every k epochs; training goes on as if it had not.

    TensorBoard shows a small animation under Images, Weights & Biases the video itself.

    Args:
        every_n_epochs: k, Lightning epochs between videos; the first is made after epoch k.
        episodes: Episodes per video.
        deterministic: Play the mode of the action distribution instead of sampling; None does what the data module's
            evaluations do.
        directory: Where the files go; None takes `videos` in the Trainer's `default_root_dir`, the run directory
            of `lightning_ppo.train`. They are named after the environment steps trained on.

    Raises:
        ConfigError: If a number is out of range, or the environment was built in Python and cannot be built again.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        episodes: int = 1,
        deterministic: bool | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if every_n_epochs < 1 or episodes < 1:
            raise ConfigError(
                f"RecordVideo: every_n_epochs and episodes must be at least 1, got {every_n_epochs}, {episodes}"
            )
        self.every_n_epochs, self.episodes, self.deterministic = every_n_epochs, episodes, deterministic
        self.directory = directory

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the environment can be built once more."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, RolloutDataModule) or not data.env_settings.id:
            raise ConfigError("RecordVideo: needs a RolloutDataModule whose env is an id or an import path")
        self._env = data.env_settings
        given = self.deterministic
        self._mode = data.evaluation_settings.deterministic if given is None else given
        self._films = trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Film the agent, on one rank, if the epoch is one to film."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        assert isinstance(pl_module, PPO)
        with pl_module.policy.whole_weights():  # for which all ranks are needed
            if self._films:
                self._film(trainer, pl_module)

    def _film(self, trainer: pl.Trainer, pl_module: PPO) -> None:
        folder = Path(self.directory or Path(trainer.default_root_dir) / "videos")
        path = folder / f"step_{pl_module.env_steps:09d}.mp4"
        with Stage(self._env) as stage, VideoFile(path, stage.fps) as file:
            preview = Preview(stage.fps)
            stage.play(pl_module.policy, self.episodes, 0, self._mode, [file, preview])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _add_animation(logger, preview, pl_module.env_steps)
            elif hasattr(logger, "log_video"):
                logger.log_video("video", [str(path)], step=pl_module.env_steps)


def _add_animation(logger: TensorBoardLogger, preview: Preview, step: int) -> None:
    """Write an animated GIF as an image, as TensorBoard itself does for videos."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width, colors = preview.frames[0].shape
    image = Summary.Image(height=height, width=width, colorspace=colors, encoded_image_string=preview.gif())
    summary = Summary(value=[Summary.Value(tag="video", image=image)])
    writer = logger.experiment.file_writer
    assert writer is not None
    writer.add_summary(summary, step)
