"""Build the Trainer that the settings describe."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_ppo.settings.class_path import instantiate
from lightning_ppo.settings.loading import marked
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import ConfigError, UserError, described


def build_trainer(
    config: Config,
    run_dir: Path,
    timing: Any,
    model: Any,
    resume_step: int | None,
    extra_callbacks: Sequence[Any] = (),
    env: Any = None,
) -> Any:
    """Return the Trainer with callbacks and loggers; `trainer.*` settings win over the defaults here.

    Without `trainer.accelerator`, or with `auto`, a GPU is used where it pays.

    Raises:
        ConfigError: If a Trainer setting is unknown, or a class path cannot be built.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Callback, ProgressBar

    from lightning_ppo.run.checkpointing import LastCheckpoint, RecordConfig, RelocatableCheckpoint
    from lightning_ppo.run.evaluation_pace import EvaluationPace
    from lightning_ppo.run.launch import check_trainer_settings, cluster_environment
    from lightning_ppo.run.loggers import MetricsCSV, TensorBoardEvents, make_loggers
    from lightning_ppo.run.stopping import GracefulStop
    from lightning_ppo.speed.hardware import choose_accelerator, fastest_precision
    from lightning_ppo.support.checkpoint_files import AtomicCheckpointIO
    from lightning_ppo.update.progress_bar import EnvStepsProgressBar

    given = dict(config.trainer)
    check_trainer_settings(given)
    if given.get("accelerator") == "auto":
        del given["accelerator"]
    writes = not given.get("fast_dev_run")
    callbacks: list[Any] = [timing, RecordConfig(marked(replace(config, resume=None, run_dir=None)))]
    saves = writes and given.get("enable_checkpointing", True)
    folder = run_dir / "checkpoints"
    if saves:
        callbacks.append(LastCheckpoint(folder / "last.ckpt", config.checkpoint.every_env_steps))
        if config.checkpoint.save_best and config.evaluation.episodes and given.get("limit_val_batches", 1):
            best: dict[str, Any] = {"monitor": "eval/return_mean", "mode": "max", "save_on_train_epoch_end": False}
            callbacks.append(RelocatableCheckpoint(folder, "best", enable_version_counter=False, **best))
    own = [*(instantiate(entry, "callbacks", Callback) for entry in config.callbacks), *extra_callbacks]
    if given.get("enable_progress_bar", True) and not any(isinstance(callback, ProgressBar) for callback in own):
        callbacks.append(EnvStepsProgressBar())
    # last, so that what it saves on a signal holds what the user's callbacks made of the same iteration
    callbacks += [*own, GracefulStop(folder / "last.ckpt" if saves else None)]
    loggers: list[Any] = []
    given.pop("callbacks", None)
    if given.pop("logger", True) in (None, True) and writes:
        loggers = [
            MetricsCSV(run_dir / "metrics.csv", lambda: model.env_steps, resume_step),
            TensorBoardEvents(run_dir, lambda: model.env_steps, resume_step),
        ]
    loggers += make_loggers(config.loggers, run_dir)
    defaults: dict[str, Any] = {
        "accelerator": choose_accelerator(model.policy, env, config.rollout.overlap or config.rollout.processes > 1),
        "devices": 1,
        "max_epochs": -1,
        "check_val_every_n_epoch": config.evaluation.every_n_epochs or 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "default_root_dir": str(run_dir),
        "plugins": [AtomicCheckpointIO(config.checkpoint.keep), *cluster_environment()],
    }
    if not model.objective.trust_region:
        defaults["precision"] = fastest_precision(model.policy, given.get("accelerator", defaults["accelerator"]))
    if not config.evaluation.episodes:
        defaults["limit_val_batches"] = 0
    try:
        trainer: Any = pl.Trainer(**(defaults | given), callbacks=callbacks, logger=loggers)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"trainer: {described(error)}") from error
    if config.evaluation.every_n_epochs is None and not {"check_val_every_n_epoch", "val_check_interval"} & set(given):
        trainer.callbacks.append(EvaluationPace())  # after the Timer that the Trainer makes of max_time
    return trainer
