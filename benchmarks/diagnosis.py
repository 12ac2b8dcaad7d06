"""Healthy and sick trainings of Pendulum: the curves of docs/curves.md.

    python benchmarks/diagnosis.py              # train what is not done yet, about half a minute each, and draw
    python benchmarks/diagnosis.py --draw       # draw what was kept

Each sick run changes one setting of the healthy one. Rows with their commands are in benchmarks/results/diagnosis.csv,
curves in benchmarks/results/curves/diagnosis/.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import learning

CONFIG = "configs/pendulum.yaml"
SHARED = ("total_env_steps=200000", "evaluation.episodes=0", "evaluation.final_episodes=0", "seed=1")
RUNS = {
    "healthy": (),
    "rate-too-high": ("optimizer.learning_rate=0.03",),
    "rate-too-low": ("optimizer.learning_rate=1e-6",),
    "rewards-as-they-are": ("normalize.rewards=false",),
    "bonus-too-large": ("update.entropy_coefficient=0.5",),
    "no-exploration": ("policy.log_std_init=-4",),
}
"""Overrides of each run."""
METRICS = {
    "return": "rollout/return_mean",
    "entropy": "loss/entropy",
    "kl": "update/kl",
    "clip_fraction": "update/clip_fraction",
    "explained_variance": "update/explained_variance",
}
"""Columns of the kept curves, and the metrics that they are."""


DRAWN = {
    "return": ("rate-too-high", "rate-too-low", "rewards-as-they-are", "bonus-too-large", "no-exploration"),
    "explained_variance": ("rewards-as-they-are",),
    "kl": ("rate-too-high", "rate-too-low"),
    "clip_fraction": ("rate-too-high", "rate-too-low"),
    "entropy": ("bonus-too-large", "no-exploration"),
}
"""The sick runs that each metric tells apart."""
PAGE = "docs/curves.md"


def train(name: str) -> None:
    """Train a run unless its row exists, and keep its row and curve."""
    if any(row["experiment"] == name for row in learning.read_rows(learning.RESULTS / "diagnosis.csv")):
        print(f"{name}: done before")
        return
    settings = [CONFIG, *SHARED, *RUNS[name]]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "train.py", *settings, f"run_dir={run_dir}", "trainer.enable_progress_bar=false"]
        subprocess.run(command, cwd=learning.ROOT, check=True)
        summary = json.loads((run_dir / "summary.json").read_text())
        keep_curve(learning.read_rows(run_dir / "metrics.csv"), name)
    row = summary | learning.provenance("diagnosis", " ".join(["python train.py", *settings]), summary["versions"])
    learning.append_row("diagnosis", row | {"experiment": name})


def keep_curve(rows: list[dict[str, str]], name: str) -> None:
    """Write the metrics of a run, a row for each iteration."""
    path = learning.RESULTS / "curves" / "diagnosis" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_steps", *METRICS])
        for row in rows:
            if row.get("update/kl"):
                values = [row.get(metric) for metric in METRICS.values()]
                writer.writerow([row["step"], *(f"{float(value):.6g}" if value else "" for value in values)])


def table() -> list[str]:
    """Return the table of the runs."""
    rows = {row["experiment"]: row for row in learning.read_rows(learning.RESULTS / "diagnosis.csv")}
    lines = ["| run | setting | return |", "|---|---|---:|"]
    for name, overrides in RUNS.items():
        setting = f"`{' '.join(overrides)}`" if overrides else "the defaults"
        lines.append(f"| {name.replace('-', ' ')} | {setting} | {float(rows[name]['train_return_mean']):,.0f} |")
    return lines


def curve(name: str, metric: str) -> list[tuple[float, float]]:
    """Return the kept points of a run."""
    rows = learning.read_rows(learning.RESULTS / "curves" / "diagnosis" / f"{name}.csv")
    return [(float(row["env_steps"]), float(row[metric])) for row in rows if row[metric]]


def draw(folder: Path | None = None) -> None:
    """Draw each metric, of the healthy run on the left and of sick ones on the right."""
    from benchmarks import drawing

    colors = dict(zip(RUNS, ("blue", *drawing.SICK), strict=True))
    for metric, sick in DRAWN.items():
        figure, (axes,) = drawing.panels(1, 2, 4.6, 2.8)
        for axis, title, names in zip(axes, ("healthy", "sick"), (("healthy",), sick), strict=True):
            curves = {name.replace("-", " "): curve(name, metric) for name in names}
            drawing.lines(axis, curves, [colors[name] for name in names])
            axis.set_title(title)
            axis.set_xlabel("environment steps")
            if metric == "kl":
                axis.set_yscale("log")
            if len(names) == 1 and axis is axes[1]:
                axis.set_title(f"sick: {names[0].replace('-', ' ')}")
        axes[0].set_ylabel(METRICS[metric])
        axes[1].sharey(axes[0])
        axes[1].autoscale(axis="y")
        drawing.save(figure, f"curve-{metric}", folder or drawing.PICTURES)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="only draw")
    if not parser.parse_args().draw:
        for name in RUNS:
            train(name)
    learning.write_between_markers(learning.ROOT / PAGE, table(), "diagnosis")
    draw()


if __name__ == "__main__":
    main()
