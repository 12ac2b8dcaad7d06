"""Loggers of a run directory: their x-axis is environment steps, and a resumed run goes on in their files."""

import csv
import json
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.settings.class_path import class_path_of
from lightning_ppo.settings.sections import LOGGERS
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.files import replacing
from lightning_ppo.support.packages import install

ALWAYS = ("csv", "tensorboard")
"""Names of what every run directory has: metrics.csv and TensorBoard events."""

SERVICES = ("wandb", "mlflow")
"""Names of Lightning's loggers, which are those of the packages that they need."""

EnvSteps = Callable[[], int]
"""Returns the number of environment steps trained on."""


class TensorBoardEvents(TensorBoardLogger):
    """Writes TensorBoard events, and nothing else, into a directory.

    Args:
        directory: The directory.
        env_steps: Gives the x-axis for callbacks that log against another counter.
        resume_step: On resuming, the step from which TensorBoard hides what was logged before.
    """

    def __init__(self, directory: str | os.PathLike[str], env_steps: EnvSteps, resume_step: int | None = None) -> None:
        purge_step = None if resume_step is None else resume_step + 1
        super().__init__(Path(directory), name="", version="", purge_step=purge_step)
        self._env_steps = env_steps

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write one point per metric."""
        super().log_metrics(metrics, self._env_steps())

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the settings."""

    @rank_zero_only
    def save(self) -> None:
        """Flush the events."""
        self.experiment.flush()


def _of_a_test(row: dict[str, str]) -> bool:
    return any(value and name.startswith("test/") for name, value in row.items())


class MetricsCSV(Logger):
    """Writes one row per logged step to one file.

    Columns that appear later are added to the header, and the file is rewritten once for them.

    Args:
        path: The file.
        env_steps: Gives the x-axis for callbacks that log against another counter.
        resume_step: On resuming, rows whose step is greater are dropped, since training will write them again, and so
            is that of the evaluation after training if no summary followed; None starts a new file.
    """

    def __init__(self, path: str | os.PathLike[str], env_steps: EnvSteps, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self._env_steps = env_steps
        self._columns: list[str] = ["step"]
        self._new = resume_step is None
        self._resume_step = resume_step

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one version per run directory."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": self._env_steps(), **{k: v for k, v in metrics.items() if k != "epoch"}}
        if self._new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._columns = list(row)
            self._write([])
            self._new = False
        elif self._resume_step is not None:
            self._drop_rows_after(self._resume_step)
        added = [name for name in row if name not in self._columns]
        if added:
            rows = self._read()
            self._columns += added
            self._write(rows)
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _drop_rows_after(self, step: int) -> None:
        self._resume_step = None
        rows = self._read() if self.path.exists() else []
        summary = self.path.with_name("summary.json")
        ended = json.loads(summary.read_text())["env_steps"] if summary.is_file() else -1

        def stays(row: dict[str, str]) -> bool:
            if int(row["step"]) == step and _of_a_test(row):
                return ended >= step  # else that evaluation is made again
            return int(row["step"]) <= step

        self._write([row for row in rows if stays(row)])

    def _read(self) -> list[dict[str, str]]:
        with open(self.path, newline="") as file:
            # a line without its end was being written when the process was killed
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            rows = list(reader)
            self._columns = list(reader.fieldnames or self._columns)
        return rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        with replacing(self.path) as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def make_loggers(entries: Sequence[Any], run_dir: Path) -> list[Logger]:
    """Return the loggers that a config names, besides those that every run directory has.

    Args:
        entries: Names, class paths, or `{class_path: name or class path, init_args: {...}}`.
        run_dir: The run directory, which names the run in W&B and MLflow.

    Raises:
        ConfigError: If a name is unknown, a package is missing, or a logger cannot be built.
    """
    loggers = []
    for entry in entries:
        name = class_path_of(entry)
        if name in ALWAYS:
            continue
        arguments = {}
        if isinstance(name, str) and name in SERVICES:
            if find_spec(name) is None:
                raise ConfigError(f"loggers: {name} needs the package {name}: {install(name)}")
            arguments = _service_arguments(name, run_dir)
        loggers.append(LOGGERS.instantiate(entry, **arguments))
    return loggers


def _service_arguments(name: str, run_dir: Path) -> dict[str, Any]:
    if name == "wandb":
        return {"project": "lightning_ppo", "name": run_dir.name, "save_dir": str(run_dir)}
    # MLflow's own default; Lightning's is a store of files, which MLflow 3 refuses
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return {"experiment_name": "lightning_ppo", "run_name": run_dir.name, "tracking_uri": uri}
