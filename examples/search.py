"""Search for settings with Optuna: `python examples/search.py --trials 20`; needs the extra `search`.

Bad trials are pruned: a Lightning callback reports each evaluation, and ends the training when Optuna has seen enough.
The study is kept in a file, so the search can be stopped, gone on with, and run by several processes at once.
"""

import argparse
import sys
from pathlib import Path

import optuna
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lightning_ppo.run.training import train
from lightning_ppo.settings.loading import load


class Pruning(Callback):
    """Reports the evaluation return of every epoch and ends a trial that Optuna gives up."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and raise TrialPruned if it is time."""
        value = trainer.callback_metrics.get("eval/return_mean")
        if value is None:
            return
        self.trial.report(float(value), step=pl_module.env_steps)
        if self.trial.should_prune():
            raise optuna.TrialPruned()


def objective(trial: optuna.Trial, folder: Path, settings: list[str]) -> float:
    """Train once and return the final evaluation return."""
    suggested = {
        "optimizer.learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "rollout.gae_lambda": trial.suggest_float("gae_lambda", 0.8, 1.0),
        "update.entropy_coefficient": trial.suggest_float("entropy_coefficient", 1e-5, 2e-2, log=True),
        "update.minibatch_size": trial.suggest_categorical("minibatch_size", [32, 64, 128]),
    }
    overrides = [f"{key}={value}" for key, value in suggested.items()]
    run_dir = folder / f"trial_{trial.number:04d}"
    files = [setting for setting in settings if "=" not in setting]
    shared = [setting for setting in settings if "=" in setting]
    often = "evaluation.every_n_epochs=1"  # so that a bad trial is noticed soon
    config = load(files, [often, *shared, *overrides, f"run_dir={run_dir}", "trainer.enable_progress_bar=false"])
    return train(config, callbacks=[Pruning(trial)])["eval_return_mean"]


def search(folder: Path, trials: int, settings: list[str]) -> optuna.Study:
    """Run trials, add them to the study in a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="ppo",
        direction="maximize",
        storage=f"sqlite:///{folder / 'study.db'}",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    study.optimize(lambda trial: objective(trial, folder, settings), n_trials=trials)
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search for settings with Optuna.")
    parser.add_argument("--trials", type=int, default=20, help="trials to run (default: 20)")
    parser.add_argument("--folder", type=Path, default=Path("runs/search"), help="study and runs (runs/search)")
    parser.add_argument("settings", nargs="*", metavar="setting", help="YAML files and key=value that all trials share")
    options = parser.parse_args()
    study = search(options.folder, options.trials, options.settings)
    if any(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials):
        print(f"best: {study.best_value:.1f} with {study.best_params}")
