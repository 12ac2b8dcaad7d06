"""Read run directories, and put runs that differ in nothing but their seed together."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf

from lightning_ppo.settings.loading import flat, to_container
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import UserError

POINTS = 300
"""Points that a curve is drawn from at most."""

INCIDENTAL = (
    *("seed", "run_dir", "resume", "debug", "trainer.enable_progress_bar", "loggers"),
    *("checkpoint.every_env_steps", "checkpoint.keep", "checkpoint.save_best"),
    *("evaluation.episodes", "evaluation.final_episodes", "evaluation.every_n_epochs", "evaluation.num_envs"),
)
"""Settings that do not make it another experiment."""

Curve = tuple[np.ndarray, np.ndarray]
"""Environment steps and values, both (K,), in rising order of steps."""


@dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    Attributes:
        path: The directory.
        settings: config.yaml as nested dicts.
        curves: metrics.csv by column; values that are not finite are left out.
        summary: summary.json; None of a run that has not ended.
    """

    path: Path
    settings: dict[str, Any]
    curves: dict[str, Curve]
    summary: dict[str, Any] | None

    @property
    def env_id(self) -> str:
        """The environment's id."""
        return str(self.settings.get("env", {}).get("id", "unknown"))

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.settings.get("seed", 0))

    def last(self, name: str) -> float | None:
        """Return the last value of a curve, None if there is none."""
        _, values = self.curves.get(name, (np.empty(0), np.empty(0)))
        return float(values[-1]) if len(values) else None


@dataclass(frozen=True)
class Group:
    """Runs of one experiment with different seeds.

    Attributes:
        label: The settings that differ from the other groups of its environment.
        runs: At least one.
    """

    label: str
    runs: tuple[Run, ...]

    def band(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Return steps, and mean, least and greatest value over the runs there, (K,) each; None without any value."""
        curves = [run.curves[name] for run in self.runs if name in run.curves and len(run.curves[name][0])]
        if not curves:
            return None
        if len(curves) == 1 and len(curves[0][0]) <= POINTS:
            steps, values = curves[0]
            return steps, values, values, values
        grid = np.linspace(min(s[0] for s, _ in curves), max(s[-1] for s, _ in curves), POINTS)
        table = np.array([_interpolate(grid, steps, values) for steps, values in curves])
        covered = ~np.isnan(table).all(0)
        grid, table = grid[covered], table[:, covered]
        return grid, np.nanmean(table, 0), np.nanmin(table, 0), np.nanmax(table, 0)


def _interpolate(grid: np.ndarray, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values on the grid, NaN further than one logging interval from where there are any.

    Seeds do not log at quite the same steps; without that margin the ends of a band would belong to a single seed.
    """
    margin = float(np.median(np.diff(steps))) if len(steps) > 1 else 0.0
    far = (grid < steps[0] - margin) | (grid > steps[-1] + margin)
    return np.where(far, np.nan, np.interp(grid, steps, values))


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run directory of train.py.

    Raises:
        UserError: If it is none.
    """
    path = Path(path)
    config, metrics, summary = (path / name for name in ("config.yaml", "metrics.csv", "summary.json"))
    if not (config.is_file() and metrics.is_file()):
        raise UserError(f"{path}: no run directory, which holds config.yaml and metrics.csv")
    return Run(
        path,
        cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(config))),
        _read_curves(metrics),
        json.loads(summary.read_text()) if summary.is_file() else None,
    )


def find_runs(path: str | os.PathLike[str]) -> list[Path]:
    """Return a run directory, or those inside a folder that is none itself, such as the one of several seeds."""
    path = Path(path)
    inside = sorted(file.parent for file in path.glob("*/config.yaml"))
    return [path] if (path / "config.yaml").is_file() or not inside else inside


def _read_curves(path: Path) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name in (None, "step") or not text:
                    continue
                try:
                    value = float(text)
                except ValueError:
                    continue
                if math.isfinite(value):
                    points.setdefault(name, []).append((float(row["step"]), value))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name; schedules and empty mappings stay as they are."""
    return flat(settings, whole=lambda value: not value or "kind" in value)


def changed_settings(run: Run) -> dict[str, Any]:
    """Return the settings of a run that differ from the defaults, and its environment and budget."""
    defaults, own = flatten(to_container(Config())), flatten(run.settings)
    always = ("env.id", "total_env_steps")
    return {k: v for k, v in own.items() if k not in INCIDENTAL and (k in always or defaults.get(k) != v)}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the runs of one environment as groups of equal settings, in the order in which they were given."""
    members: dict[str, list[Run]] = {}
    essentials: dict[str, dict[str, str]] = {}
    for run in runs:
        settings = {k: json.dumps(v, sort_keys=True) for k, v in flatten(run.settings).items() if k not in INCIDENTAL}
        key = json.dumps(settings, sort_keys=True)
        members.setdefault(key, []).append(run)
        essentials[key] = settings
    names = sorted({name for settings in essentials.values() for name in settings})
    differing = [n for n in names if len({settings.get(n) for settings in essentials.values()}) > 1]
    ends = [n.rpartition(".")[2] for n in differing]
    shown = {n: end if ends.count(end) == 1 else n for n, end in zip(differing, ends, strict=True)}
    groups = []
    for key, group in members.items():
        parts = [f"{shown[n]}={essentials[key].get(n, 'unset')}".replace('"', "") for n in differing]
        groups.append(Group(", ".join(parts) or group[0].env_id, tuple(sorted(group, key=lambda run: run.seed))))
    return groups
