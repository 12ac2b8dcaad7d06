"""Table 1 of the PPO paper: objectives compared on seven MuJoCo tasks, three seeds each, 1M environment steps.

    pip install -c constraints.txt -e ".[mujoco,benchmark]"
    python benchmarks/table1.py run --workers 2
    python benchmarks/table1.py run --columns none clip-0.2 --seeds 1
    python benchmarks/table1.py report

`run` continues where it was stopped: a finished run is a row in benchmarks/results/table1-COLUMN.csv, a killed one
continues from its last checkpoint. Seeds come before columns and the most important columns come first, so that what
exists is comparable. `report` writes docs/table1.md from the rows that exist.

Settings are those of configs/paper/mujoco.yaml but for what a column names. The score of a run is the mean return of
its last 100 training episodes, on the scale on which uniformly random actions have 0 and the best run of the paper's
columns has 1.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import learning

CONFIG = "configs/paper/mujoco.yaml"
PAGE = learning.ROOT / "docs" / "table1.md"
TASKS = (
    *("HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5"),
    *("Reacher-v5", "Swimmer-v5", "Walker2d-v5"),
)
SEEDS = (1, 2, 3)
ALWAYS = ("evaluation.episodes=0", "evaluation.final_episodes=0")


class Column(NamedTuple):
    """One objective of the comparison."""

    title: str
    settings: tuple[str, ...]
    paper: float | None = None
    """Its score in the paper's Table 1."""


def _adaptive(target: float, paper: float) -> Column:
    return Column(f"adaptive KL, d_targ = {target}", ("objective=adaptive_kl", f"update.kl_target={target}"), paper)


def _fixed(beta: float, paper: float) -> Column:
    return Column(f"fixed KL, β = {beta:g}", ("objective=kl_penalty", f"update.kl_coefficient={beta}"), paper)


def _clip(epsilon: float, paper: float) -> Column:
    return Column(f"clipping, ε = {epsilon}", ("objective=clip", f"update.clip_range={epsilon}"), paper)


COLUMNS = {
    "none": Column("no clipping or penalty", ("objective=surrogate",), -0.39),
    "clip-0.2": _clip(0.2, 0.82),
    "adaptive-0.01": _adaptive(0.01, 0.74),
    "beta-1": _fixed(1.0, 0.71),
    "trpo": Column("TRPO, δ = 0.01", ("objective=trpo",)),
    # without a ratio a step is right for the policy that collected only: as many steps, each on transitions of its own
    "policy-gradient": Column(
        "policy gradient (A2C)", ("objective=policy_gradient", "update.epochs=1", "rollout.num_steps=64")
    ),
    "clip-0.1": _clip(0.1, 0.76),
    "clip-0.3": _clip(0.3, 0.70),
    "adaptive-0.003": _adaptive(0.003, 0.68),
    "adaptive-0.03": _adaptive(0.03, 0.71),
    "beta-0.3": _fixed(0.3, 0.62),
    "beta-3": _fixed(3.0, 0.72),
    "beta-10": _fixed(10.0, 0.69),
}
"""In the order in which they are run."""


class UnboundedActions(gym.ActionWrapper):
    """Hand on what the policy sampled, as the paper's implementation did: neither clipped to the Box nor scaled to it.

    The simulator bounds forces and torques, but the tasks' control costs are those of the actions as given.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        box = env.action_space
        assert isinstance(box, gym.spaces.Box)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, box.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """Return the action as it is."""
        return action


def run_one(experiment: str, configs: Sequence[str], env_id: str | None, seed: int, overrides: Sequence[str]) -> str:
    """Train as `learning.run_one` does; a run that diverges counts with what it had reached."""
    error = learning.run_one(experiment, configs, env_id, seed, overrides)
    if "nothing was learnt from there on" not in error:
        return error
    run_dir = learning.RUNS / experiment / f"{env_id}-{seed}"
    reached = [row for row in learning.read_rows(run_dir / "metrics.csv") if row.get("rollout/return_mean")]
    if not reached:
        return error
    last = reached[-1]
    learning.write_curve(run_dir / "metrics.csv", learning.RESULTS / "curves" / experiment / f"{env_id}-{seed}.csv")
    command = " ".join(["python train.py", *configs, f"env.id={env_id}", *overrides, f"seed={seed}"])
    versions = learning.package_versions("torch", "gymnasium", "mujoco", "numpy")
    row = {"env_id": env_id, "seed": seed, "env_steps": round(float(last["step"]))}
    row |= {"train_return_mean": last["rollout/return_mean"]}
    commit = learning.commit_of(run_dir)
    learning.append_row(experiment, row | learning.provenance(experiment, command, versions, commit))
    learning.clear(run_dir)
    return ""


def scores(
    table: learning.Table, experiments: Sequence[str], scale: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return the scores of each experiment's runs by task: 0 is random actions, 1 the best run of those in `scale`."""
    found: dict[str, dict[str, list[float]]] = {experiment: {} for experiment in experiments}
    for env_id in TASKS:
        rows = table.get(env_id, {})
        returns = {name: [float(row["train_return_mean"]) for row in rows.get(name, [])] for name in experiments}
        chance = [float(row["train_return_mean"]) for row in rows.get("random", [])]
        best = max((value for name in scale for value in returns[name]), default=None)
        if not chance or best is None:
            continue
        for experiment, values in returns.items():
            if values:
                found[experiment][env_id] = [(value - chance[0]) / (best - chance[0]) for value in values]
    return found


def difference(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """Return how much higher the mean score of one column is than that of another, and its 95 % bootstrap interval."""
    generator = np.random.default_rng(0)

    def means(column: Mapping[str, Sequence[float]]) -> np.ndarray:
        drawn = [generator.choice(np.asarray(task), (10_000, len(task))) for task in column.values()]
        return np.concatenate(drawn, axis=1).mean(1)

    low, high = np.percentile(means(one) - means(other), [2.5, 97.5])
    mean = np.mean(np.concatenate([*one.values()])) - np.mean(np.concatenate([*other.values()]))
    return float(mean), float(low), float(high)


def report(name: str, page: Path) -> None:
    """Write scores and returns between the markers of the page, and the curves of the first columns beside it."""
    names = {f"{name}-{column}": column for column in COLUMNS}
    table = learning.load_results(["random", *names])
    lines = [
        "| objective | ours | 95 % interval | difference from clipping, ε = 0.2 | paper | runs |",
        "|---|---|---|---|---|---|",
    ]
    returns = [f"| objective | {' | '.join(task.removesuffix('-v5') for task in TASKS)} |", "|---" * 8 + "|"]
    found = scores(table, list(names), [experiment for experiment, column in names.items() if COLUMNS[column].paper])
    clipping = found[f"{name}-clip-0.2"]
    for experiment, tasks in found.items():
        column, rows = COLUMNS[names[experiment]], [table.get(task, {}).get(experiment, []) for task in TASKS]
        count = sum(len(values) for values in tasks.values())
        diverged = sum(not row["train_return_std"] for task in rows for row in task)
        ours = interval = less = ""
        if count:
            mean, low, high = learning.aggregate(tasks, statistic=lambda values: np.mean(values, axis=-1))
            ours, interval = f"{mean:.2f}", f"{low:.2f} to {high:.2f}" if count > len(tasks) else ""
            if tasks is not clipping and [*map(len, tasks.values())] == [*map(len, clipping.values())]:
                mean, low, high = difference(tasks, clipping)
                less = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" if interval else f"{mean:+.2f}"
        paper = "" if column.paper is None else f"{column.paper:.2f}"
        complete = f"{count} of {len(TASKS) * len(SEEDS)}" + (f", {diverged} diverged" if diverged else "")
        lines.append(f"| {column.title} | {ours} | {interval} | {less} | {paper} | {complete} |")
        returns.append(f"| {column.title} | {' | '.join(learning.spread(task) for task in rows)} |")
    chance = " | ".join(learning.spread(table.get(task, {}).get("random", [])) for task in TASKS)
    lines += ["", *returns, f"| random actions | {chance} |"]
    shown = [experiment for experiment, tasks in found.items() if tasks][:6]
    if shown:
        curves = page.with_suffix(".png")
        learning.draw(curves, shown, [task for task in TASKS if any(task in found[name] for name in shown)])
        lines += ["", f"![learning curves]({curves.name})"]
    learning.write_between_markers(page, lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not done yet")
    run.add_argument("settings", nargs="*", help="key=value overrides of all runs, for a trial")
    run.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    run.add_argument("--tasks", nargs="+", default=list(TASKS))
    run.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    run.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    page = commands.add_parser("report", help="write the table into a Markdown page")
    page.add_argument("--page", type=Path, default=PAGE)
    for command in (run, page):
        command.add_argument("--name", default="table1", help="how the names of the results files begin")
    options = parser.parse_args()
    if options.command == "report":
        report(options.name, options.page)
        return
    for env_id in options.tasks:
        learning.play_randomly(env_id)
    runs = []
    for seed in options.seeds:
        for column in options.columns:
            compiled = "compile=false" if column == "trpo" else "compile=true"
            settings = [*COLUMNS[column].settings, compiled, *ALWAYS, *options.settings]
            runs += [(f"{options.name}-{column}", [CONFIG], env_id, seed, settings) for env_id in options.tasks]
    learning.run_all(runs, options.workers, run_one)


if __name__ == "__main__":
    main()
