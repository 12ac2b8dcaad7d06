r"""The objectives of the policy gradient family, and deep Q-learning beside them, on four tasks with discrete actions.

    pip install -c constraints.txt -e ".[box2d]"
    python benchmarks/family.py run --workers 2
    python benchmarks/peers/sb3.py {CartPole,Acrobot}-v1 MountainCar-v0 LunarLander-v3 \
        --algorithm dqn --total-env-steps 200000
    python benchmarks/family.py report

Three seeds each, 200,000 environment steps. Ours have the universal defaults but for the objective, DQN those of
Stable-Baselines3. `run` and `sb3.py` go on where they were stopped: a finished run is a row in
benchmarks/results/family-OBJECTIVE.csv or sb3-dqn-200000.csv. `report` writes docs/objectives.md from the rows that
exist.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import learning
from benchmarks.peers.sb3 import experiment_name

PAGE = learning.ROOT / "docs" / "objectives.md"
TASKS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3")
OBJECTIVES = ("clip", "kl_penalty", "adaptive_kl", "trpo", "policy_gradient", "surrogate")
SEEDS = (1, 2, 3)
STEPS = 200_000
ALWAYS = ("evaluation.episodes=0", "evaluation.final_episodes=100")


def report(page: Path) -> None:
    """Write returns with and without noise between the markers of the page."""
    names = {f"family-{objective}": f"`{objective}`" for objective in OBJECTIVES}
    names[experiment_name("dqn", STEPS)] = "DQN (Stable-Baselines3)"
    table = learning.load_results([*names])
    columns = [f"{task}: {kind}" for task in TASKS for kind in ("training", "at the end")]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for experiment, title in names.items():
        cells = []
        for task in TASKS:
            rows = table.get(task, {}).get(experiment, [])
            for name in ("train_return_mean", "eval_return_mean"):
                cells.append(extremes([float(row[name]) for row in rows if row[name]]))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    learning.write_between_markers(page, lines)


def extremes(values: list[float]) -> str:
    """Return the mean of some returns, with the least and the most, as text."""
    if not values:
        return ""
    return f"{sum(values) / len(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not done yet")
    run.add_argument("settings", nargs="*", help="key=value overrides of all runs, for a trial")
    run.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    run.add_argument("--tasks", nargs="+", default=list(TASKS))
    run.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    run.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    commands.add_parser("report", help="write the table into the page").add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.command == "report":
        report(options.page)
        return
    runs = []
    for seed in options.seeds:
        for objective in options.objectives:
            compiled = "compile=false" if objective == "trpo" else "compile=true"
            settings = [f"total_env_steps={STEPS}", f"objective={objective}", compiled, *ALWAYS, *options.settings]
            runs += [(f"family-{objective}", ["configs/cartpole.yaml"], task, seed, settings) for task in options.tasks]
    learning.run_all(runs, options.workers)


if __name__ == "__main__":
    main()
