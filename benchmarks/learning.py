"""Learning curves: run configs x seeds in the background, resumable, and report them beside published results.

    python benchmarks/learning.py run universal configs/halfcheetah.yaml configs/hopper.yaml --seeds 1 2 3
    python benchmarks/learning.py run parity configs/parity/mujoco.yaml --env HalfCheetah-v5 Hopper-v5 --seeds 1 2 3
    python benchmarks/learning.py random HalfCheetah-v5 Hopper-v5
    python benchmarks/learning.py report docs/results.md --experiments universal parity sb3

A finished run is never repeated: its row is in benchmarks/results/NAME.csv and its curve beside it. A run that was
killed continues from its last checkpoint. Returns are those of training, mean of the last 100 episodes, unless said.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lightning_ppo.support.statistics import bootstrap_interval, interquartile_mean

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "benchmarks" / "runs"
COLUMNS = (
    *("experiment", "env_id", "seed", "env_steps", "train_return_mean", "train_return_std"),
    *("eval_return_mean", "eval_return_std", "eval_episodes", "env_steps_per_second", "wall_seconds"),
    *("command", "commit", "date", "cpu", "versions"),
)
CURVE_POINTS = 200
OF_ONE_RUN = ("seed", "run_dir", "resume")
"""Settings in which the runs of an experiment differ."""
Table = dict[str, dict[str, list[dict[str, str]]]]
"""Rows of results by environment and experiment."""
Run = Callable[[str, Sequence[str], str | None, int, Sequence[str]], str]
"""Takes experiment, config files, environment, seed and overrides."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def is_done(experiment: str, env_id: str, seed: int) -> bool:
    """Return whether a run's row stands in the results."""
    rows = read_rows(RESULTS / f"{experiment}.csv")
    return any(row["env_id"] == env_id and int(row["seed"]) == seed for row in rows)


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: version(name) for name in names if find_spec(name)}


def current_commit() -> str:
    """Return the commit that is checked out, with `-dirty` behind it if more than results and pages differ from it."""
    head, changed = (
        subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for command in (
            ("rev-parse", "--short", "HEAD"),
            ("diff", "--name-only", "HEAD", "--", ".", ":!benchmarks/results", ":!docs"),
        )
    )
    return f"{head}-dirty" if changed else head


def provenance(experiment: str, command: str, versions: dict[str, str], commit: str = "") -> dict[str, str]:
    """Return the columns that say where a row comes from; `commit` is the current one unless it is given."""
    return {
        "experiment": experiment,
        "command": command,
        "commit": commit or current_commit(),
        "date": f"{date.today()}",
        "cpu": cpu_name(),
        "versions": json.dumps(versions),
    }


def append_row(experiment: str, row: dict[str, Any]) -> None:
    """Append the known columns of `row` to an experiment's results."""
    results = RESULTS / f"{experiment}.csv"
    results.parent.mkdir(parents=True, exist_ok=True)
    new = not results.exists()
    with open(results, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({name: row.get(name) for name in COLUMNS})


def run_one(experiment: str, configs: Sequence[str], env_id: str | None, seed: int, overrides: Sequence[str]) -> str:
    """Train one seed unless its row exists, and append its row and curve; return what a failed run complained of.

    A run that was killed goes on with the settings it began with, so it fails if it is asked for with others.
    """
    settings = [*configs, *([f"env.id={env_id}"] if env_id else []), *overrides]
    shown = subprocess.run(
        [sys.executable, "train.py", *settings, "--print-config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if shown.returncode:
        raise SystemExit(shown.stderr)
    env_id = str(yaml.safe_load(shown.stdout)["env"]["id"])
    if error := keep_settings(experiment, env_id, shown.stdout):
        print(f"{experiment} {env_id} seed {seed}: failed\n{error}", flush=True)
        return error
    if is_done(experiment, env_id, seed):
        print(f"{experiment} {env_id} seed {seed}: done before")
        return ""
    run_dir = RUNS / experiment / f"{file_name(env_id)}-{seed}"
    command_line = " ".join(["python train.py", *settings, f"seed={seed}"])
    begun = _beginning(run_dir)
    command = [sys.executable, "train.py", *settings, f"seed={seed}", f"run_dir={run_dir}"]
    command.append("trainer.enable_progress_bar=false")
    if (run_dir / "checkpoints" / "last.ckpt").exists() and begun.exists():
        former = json.loads(begun.read_text())["command"]
        if former != command_line:
            error = f"{run_dir} was begun by `{former}`; delete it, or go on with that"
            print(f"{experiment} {env_id} seed {seed}: failed\n{error}", flush=True)
            return error
        command = [sys.executable, "train.py", f"run_dir={run_dir}", "resume=last"]
    else:
        clear(run_dir)
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.write_text(json.dumps({"command": command_line, "commit": current_commit()}))
    print(f"{experiment} {env_id} seed {seed}: running", flush=True)
    finished = subprocess.run(
        command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ}, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        print(f"{experiment} {env_id} seed {seed}: failed\n{finished.stderr}", flush=True)
        return finished.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    write_curve(run_dir / "metrics.csv", RESULTS / "curves" / experiment / f"{run_dir.name}.csv")
    append_row(experiment, summary | provenance(experiment, command_line, summary["versions"], commit_of(run_dir)))
    print(f"{experiment} {env_id} seed {seed}: {summary['train_return_mean']:.1f}", flush=True)
    clear(run_dir)
    return ""


def file_name(env_id: str) -> str:
    """Return an environment's id as files are named after it."""
    return env_id.replace("/", "_").replace(":", "_")


def keep_settings(experiment: str, env_id: str, shown: str) -> str:
    """Write down the settings of an experiment on a task, or return how they differ from those of its other runs.

    Settings that one of the two does not know are passed over.

    Args:
        experiment: Name of the results file.
        env_id: The task.
        shown: The settings as YAML.
    """
    path = RESULTS / "settings" / experiment / f"{file_name(env_id)}.yaml"
    settings = {name: value for name, value in yaml.safe_load(shown).items() if name not in OF_ONE_RUN}
    if path.exists():
        told = ", ".join(differences(yaml.safe_load(path.read_text()), settings))
        return f"{told}; choose another name than {experiment}, or delete its rows and {path}" if told else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return ""


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return what differs between the settings of two runs, of those that both have."""
    # a schedule is one setting
    if isinstance(before, dict) and isinstance(now, dict) and "kind" not in {*before, *now}:
        prefix = f"{name}." if name else ""
        return [told for key in now if key in before for told in differences(before[key], now[key], f"{prefix}{key}")]
    return [] if before == now else [f"{name} was {before} and is {now}"]


def _beginning(run_dir: Path) -> Path:
    """Return the file that says how a run was begun."""
    return run_dir.with_name(f"{run_dir.name}.json")


def commit_of(run_dir: Path) -> str:
    """Return the commit that a run was begun with."""
    return json.loads(_beginning(run_dir).read_text())["commit"]


def clear(run_dir: Path) -> None:
    """Delete what there is of a run."""
    shutil.rmtree(run_dir, ignore_errors=True)
    _beginning(run_dir).unlink(missing_ok=True)


def run_all(
    tasks: Iterable[tuple[str, Sequence[str], str | None, int, Sequence[str]]], workers: int, run: Run = run_one
) -> None:
    """Run many, each given by the arguments of `run_one`, so many side by side.

    Raises:
        SystemExit: In the end, if any of them failed.
    """
    with ThreadPoolExecutor(workers) as pool:
        failures = [error for job in [pool.submit(run, *task) for task in tasks] if (error := job.result())]
    if failures:
        raise SystemExit(f"{len(failures)} of the runs failed")


def write_curve(metrics: Path, target: Path) -> None:
    """Keep the training return of a run at about CURVE_POINTS points."""
    points = [(r["step"], r["rollout/return_mean"]) for r in read_rows(metrics) if r.get("rollout/return_mean")]
    kept = points[:: max(1, len(points) // CURVE_POINTS)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", newline="") as file:
        csv.writer(file).writerows([("env_steps", "return"), *kept])


def play_randomly(env_id: str, episodes: int = 100) -> None:
    """Append the return of uniformly random actions, where scores have their 0, unless its row exists."""
    import gymnasium

    if is_done("random", env_id, 0):
        print(f"random {env_id}: done before")
        return
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        env.reset(seed=episode)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[episode] += float(reward)
            ended = terminated or truncated
    versions = package_versions("gymnasium", "mujoco", "numpy")
    row = {"env_id": env_id, "seed": 0, "env_steps": 0, "train_return_mean": returns.mean()}
    row |= {"train_return_std": returns.std()}
    append_row("random", row | provenance("random", f"python benchmarks/learning.py random {env_id}", versions))
    print(f"random {env_id}: {returns.mean():.1f}")


def _mean(values: Any) -> Any:
    return np.mean(values, axis=-1)


def aggregate(
    scores: Mapping[str, Sequence[float]], samples: int = 10_000, statistic: Callable[[Any], Any] = interquartile_mean
) -> tuple[float, float, float]:
    """Return a statistic over the runs of all tasks, and its 95 % bootstrap interval.

    Runs are drawn anew within each task (stratified bootstrap, Agarwal et al. 2021, section 4.2).

    Args:
        scores: Of each task, one score per seed.
        samples: Bootstrap draws.
        statistic: Reduces the last axis.
    """
    generator = np.random.default_rng(0)
    drawn = [generator.choice(np.asarray(task), (samples, len(task))) for task in scores.values()]
    low, high = np.percentile(statistic(np.concatenate(drawn, axis=1)), [2.5, 97.5])
    return float(statistic(np.concatenate([*scores.values()]))), float(low), float(high)


def normalized_scores(table: Table, experiment: str, zero: str = "random", one: str = "sb3") -> dict[str, list[float]]:
    """Return an experiment's returns per task on the scale where the means of `zero` and `one` are 0 and 1.

    Tasks for which one of the three has no runs are left out.
    """
    scores = {}
    for env_id, by_experiment in table.items():
        own, low, high = (
            [float(row["train_return_mean"]) for row in by_experiment.get(name, [])] for name in (experiment, zero, one)
        )
        if own and low and high:
            origin = sum(low) / len(low)
            scale = sum(high) / len(high) - origin
            scores[env_id] = [(value - origin) / scale for value in own]
    return scores


def load_results(experiments: Sequence[str]) -> Table:
    """Return the rows of each environment and experiment, by seed."""
    table: Table = defaultdict(lambda: defaultdict(list))
    for experiment in experiments:
        for row in sorted(read_rows(RESULTS / f"{experiment}.csv"), key=lambda row: int(row["seed"])):
            table[row["env_id"]][experiment].append(row)
    return table


def report(path: Path, experiments: Sequence[str]) -> None:
    """Write the table between the markers of a Markdown page, and the learning curves beside the page."""
    table = load_results(experiments)
    lines = [
        "| environment | experiment | seeds | training return, mean ± std | 95 % interval | per seed | evaluation |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for env_id, by_experiment in sorted(table.items()):
        for experiment in experiments:
            rows = by_experiment.get(experiment, [])
            if not rows:
                continue
            returns = [float(row["train_return_mean"]) for row in rows]
            mean, interval = f"{np.mean(returns):,.1f}", ""
            if len(returns) > 1:
                low, high = bootstrap_interval(returns, _mean, 2000)
                mean, interval = f"{mean} ± {np.std(returns, ddof=1):,.1f}", f"{low:,.1f} to {high:,.1f}"
            decimals = 1 if abs(np.mean(returns)) < 100 else 0
            each = ", ".join(f"{value:,.{decimals}f}" for value in returns)
            played = [float(row["eval_return_mean"]) for row in rows if row["eval_return_mean"]]
            evaluated = f"{np.mean(played):,.1f}" if played else ""
            lines.append(f"| {env_id} | {experiment} | {len(rows)} | {mean} | {interval} | {each} | {evaluated} |")
    for reference in read_rows(RESULTS.parent / "references.csv"):
        if reference["env_id"] in table:
            spread = f" ± {reference['std']}" if reference["std"] else ""
            lines.append(
                f"| {reference['env_id']} | *{reference['system']}* ({reference['version']}) | {reference['seeds']} | "
                f"{reference['mean']}{spread} | | | |"
            )
    body = [lines[0], lines[1], *sorted(lines[2:]), "", *aggregate_lines(experiments)]
    write_between_markers(path, body)
    draw(path.with_suffix(".png"), experiments, sorted(table))


def spread(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the mean training return of some runs and its standard deviation as text."""
    values = [float(row["train_return_mean"]) for row in rows]
    if len(values) < 2:
        return f"{values[0]:,.1f}" if values else ""
    mean = sum(values) / len(values)
    return f"{mean:,.1f} ± {(sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5:,.1f}"


def write_between_markers(path: Path, lines: Sequence[str], name: str = "table") -> None:
    """Replace what stands between the markers of that name in a Markdown page."""
    begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    path.write_text("\n".join([before + begin, *lines, end + after]))


def aggregate_lines(experiments: Sequence[str]) -> list[str]:
    """Return the table of aggregates over tasks, a row per experiment.

    Every task counts with as many seeds as all have, the first ones.
    """
    table = load_results([*dict.fromkeys([*experiments, "random", "sb3"])])
    lines = [
        "| experiment | tasks | seeds of each | interquartile mean of scores | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for experiment in experiments:
        scores = normalized_scores(table, experiment)
        if not scores:
            continue
        seeds = min(map(len, scores.values()))
        mean, low, high = aggregate({task: values[:seeds] for task, values in scores.items()})
        interval = f"{low:.2f} to {high:.2f}" if seeds > 1 else ""
        tasks = ", ".join(task.removesuffix("-v5") for task in sorted(scores))
        lines.append(f"| {experiment} | {tasks} | {seeds} | {mean:.2f} | {interval} |")
    return lines


def draw(path: Path, experiments: Sequence[str], env_ids: Sequence[str]) -> None:
    """Draw learning curves, mean over seeds with the 95 % bootstrap interval of the mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(env_ids))
    height = -(-len(env_ids) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4 * columns, 3 * height), squeeze=False, layout="constrained")
    for axis in axes.flat[len(env_ids) :]:
        axis.axis("off")
    for axis, env_id in zip(axes.flat, env_ids, strict=False):
        for number, experiment in enumerate(experiments):
            files = sorted((RESULTS / "curves" / experiment).glob(f"{file_name(env_id)}-*.csv"))
            curves = [np.loadtxt(f, delimiter=",", skiprows=1, ndmin=2) for f in files]
            curves = [c for c in curves if len(c)]
            if not curves:
                continue
            # a run that diverged keeps the return it had reached
            steps = np.linspace(max(c[0, 0] for c in curves), max(c[-1, 0] for c in curves), 100)
            returns = np.stack([np.interp(steps, c[:, 0], c[:, 1]) for c in curves])
            axis.plot(steps, returns.mean(0), color=f"C{number}", label=experiment)
            bounds = np.array([bootstrap_interval(at, _mean, 500) for at in returns.T])
            axis.fill_between(steps, bounds[:, 0], bounds[:, 1], color=f"C{number}", alpha=0.2, linewidth=0)
        axis.set_title(env_id)
        axis.set_xlabel("environment steps")
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("return, last 100 episodes")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(handles=[*lines.values()], loc="outside lower center", ncols=len(lines) or 1, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not done yet")
    run.add_argument("experiment", help="name of the results file")
    run.add_argument("settings", nargs="+", help="config files, each a task, and key=value overrides of all of them")
    run.add_argument("--env", nargs="+", default=[None], help="tasks for one config that fits many")
    run.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    run.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    floor = commands.add_parser("random", help="measure the return of random actions")
    floor.add_argument("env_ids", nargs="+")
    page = commands.add_parser("report", help="write table and curves into a Markdown page")
    page.add_argument("page", type=Path)
    page.add_argument("--experiments", nargs="+", required=True)
    options = parser.parse_args()
    if options.command == "report":
        report(options.page, options.experiments)
        return
    if options.command == "random":
        for env_id in options.env_ids:
            play_randomly(env_id)
        return
    configs = [s for s in options.settings if "=" not in s]
    overrides = [s for s in options.settings if "=" in s]
    tasks = [
        (options.experiment, [config], env, seed, overrides)
        for seed in options.seeds
        for config in configs
        for env in options.env
    ]
    run_all(tasks, options.workers)


if __name__ == "__main__":
    main()
