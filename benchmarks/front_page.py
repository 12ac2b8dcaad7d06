"""The comparison at the top of the README and of the site, from the rows of the benchmarks.

    python benchmarks/front_page.py

It runs nothing: it writes the tables between the markers of both pages, and draws docs/pictures/overview-*.svg.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import learning, speed

PAGES = ("README.md", "docs/index.md")
TASKS = (
    *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5", "Reacher-v5"),
    *("InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
)
PUBLISHED = {"CleanRL": "CleanRL ppo_continuous_action", "Tianshou": "Tianshou PPO"}
"""Columns of figures that others have published, by the system's name in benchmarks/references.csv."""
RACES = {
    "HalfCheetah 1 x 2048": "HalfCheetah-v5, 1 env x 2048, 10 epochs x 32 minibatches",
    "HalfCheetah 8 x 256": "HalfCheetah-v5, 8 envs x 256, 10 epochs x 32 minibatches",
    "CartPole 4 x 128": "CartPole-v1, 4 envs x 128, 4 epochs x 4 minibatches",
    "CartPole 64 x 128": "CartPole-v1, 64 envs x 128, 4 epochs x 4 minibatches",
}
"""Workloads of the race, by what the table calls them."""
RACERS = ("lightning_ppo", "lightning_ppo_compiled", "sb3", "sbx", "sheeprl", "single_file")


def spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation as text, with a decimal where the mean is below 100."""
    decimals = 1 if abs(statistics.mean(values)) < 100 else 0
    return f"{statistics.mean(values):,.{decimals}f} ± {statistics.stdev(values):,.{decimals}f}"


def returns_table() -> list[str]:
    """Return the table of returns: the defaults, Stable-Baselines3 measured here, and what others have published."""
    table = learning.load_results(["universal", "sb3"])
    published = learning.read_rows(learning.RESULTS.parent / "references.csv")
    others = " | ".join(f"*{name}*" for name in PUBLISHED)
    rows = [f"| return after 1M steps | lightning_ppo | Stable-Baselines3 | {others} |"]
    rows.append("|---|---:|---:|" + "---:|" * len(PUBLISHED))
    for task in TASKS:
        means = {
            name: statistics.mean(float(row["train_return_mean"]) for row in table[task][name])
            for name in ("universal", "sb3")
        }
        cells = [spread([float(row["train_return_mean"]) for row in table[task][name]]) for name in means]
        best = max(means, key=means.__getitem__)
        if means["universal"] != means["sb3"]:
            cells[list(means).index(best)] = f"**{cells[list(means).index(best)]}**"
        for system in PUBLISHED.values():
            found = [row for row in published if (row["env_id"], row["system"]) == (task, system)]
            cells.append(f"{float(found[0]['mean']):,g}" if found else "")
        rows.append(f"| {task.removesuffix('-v5')} | {' | '.join(cells)} |")
    return rows


def speed_table() -> list[str]:
    """Return the table of medians of the race."""
    rates = speed.medians(learning.read_rows(learning.RESULTS / "speed.csv"), "env_steps_per_second")
    rows = [f"| environment steps per second | {' | '.join(RACES)} |", "|---|" + "---:|" * len(RACES)]
    for racer in RACERS:
        cells = [f"{rates[workload][racer]:,.0f}" for workload in RACES.values()]
        rows.append(f"| {speed.SYSTEMS[racer].label} | {' | '.join(cells)} |")
    return rows


def comparison() -> list[str]:
    """Return what stands between the markers."""
    return ["", *returns_table(), "", *speed_table(), ""]


def draw(folder: Path | None = None) -> None:
    """Draw scores by task, and the speed on HalfCheetah."""
    from benchmarks import drawing

    def bars(name: str, title: str, values: dict[str, float], form: str, ours: Callable[[str], bool]) -> None:
        figure, ((axis,),) = drawing.panels(1, 1, 4.1, 3.0)
        colors = [drawing.LIGHT["blue" if ours(label) else "other"] for label in values]
        axis.bar_label(axis.barh([*values], [*values.values()], color=colors), fmt=form, padding=4)
        if name == "overview-returns":
            axis.axvline(1.0, color=drawing.LIGHT["orange"], linestyle="--")
        axis.grid(visible=False)
        axis.margins(x=0.2)
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_visible(False)
        axis.spines["bottom"].set_visible(False)
        figure.suptitle(title, x=0.02, ha="left", fontsize=12)
        drawing.save(figure, name, folder or drawing.PICTURES)

    scores = learning.normalized_scores(learning.load_results(["universal", "random", "sb3"]), "universal")
    means = {task.removesuffix("-v5"): statistics.mean(values) for task, values in scores.items()}
    means = dict(sorted(means.items(), key=lambda item: item[1]))
    title = "Return of the defaults: 0 is random actions,\n1 is Stable-Baselines3 (dashed)"
    bars("overview-returns", title, means, "{:.2f}", lambda _: True)
    workload = RACES["HalfCheetah 8 x 256"]
    rates = speed.medians(learning.read_rows(learning.RESULTS / "speed.csv"), "env_steps_per_second")[workload]
    rates = {speed.SYSTEMS[racer].label: rates[racer] for racer in reversed(RACERS)}
    title = "Environment steps per second on one core,\nHalfCheetah 8 x 256, learning included"
    bars("overview-speed", title, rates, "{:,.0f}", lambda label: label.startswith("lightning_ppo"))


def main() -> None:
    """Write the tables of both pages and draw."""
    for name in PAGES:
        learning.write_between_markers(learning.ROOT / name, comparison(), "comparison")
    draw()


if __name__ == "__main__":
    main()
