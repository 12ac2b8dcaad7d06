"""Race lightning_ppo against other libraries on equal terms, and report the ratios.

    python benchmarks/speed.py                  all of it: race, tables, bar chart in docs/speed.md (about an hour)
    python benchmarks/speed.py --workloads 1 2  some of it (--runs, --systems); the page shows what has been raced
    python benchmarks/speed.py --anew           throws the rows of what is to be raced away first
    python benchmarks/speed.py --report-only    from the rows of the last race
    python benchmarks/speed.py --smoke          does everything work? tiny budgets, no figures kept

A row is kept in benchmarks/results/speed.csv as each run ends. The same command continues a race that was stopped, and
`--runs 7` adds two runs of each to a race of five.

Same rollout size, minibatch size, epochs and network shapes (SheepRL excepted, see peers/race_sheeprl.py), one core for
each run unless the workload's name says otherwise. Runs are interleaved: every system once, then every system again.
Speed is that of the training loop after two iterations of warm-up; importing, compiling and warming up are reported on
their own. `rollout.processes=2` and `rollout.overlap=true`, which is not on-policy, take a second core for a second
process, whose memory is not counted: they have columns of their own. The peers' virtual environments are created
automatically.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.learning import RESULTS, ROOT, cpu_name, read_rows
from benchmarks.peers.environments import PEERS, peer_python
from benchmarks.peers.stopwatch import Race

WARM_UP = 2
"""Iterations before the clock starts."""
COLUMNS = (
    *("workload", "system", "repeat", "env_steps_per_second", "start_seconds", "compile_seconds"),
    *("peak_memory_mb", "iterations", "versions", "cpu", "cores", "date", "commit"),
)


@dataclass
class System:
    """A racer."""

    label: str
    """As the tables name it."""
    script: str
    """File under `peers`, without `.py`."""
    venv: str | None = None
    """Virtual environment under `.venvs`; None is the one this script runs in."""
    processes: int = 1
    """Each gets the cores of a task to itself."""
    mode: str = ""
    """What the column is called in which it is compared with others."""


SYSTEMS = {
    "lightning_ppo": System("lightning_ppo, eager", "race_lightning_ppo", mode="eager"),
    "lightning_ppo_compiled": System("lightning_ppo, compile=true", "race_lightning_ppo", mode="compiled"),
    "lightning_ppo_grouped": System(
        "lightning_ppo, rollout.processes=2, on twice the cores", "race_lightning_ppo", None, 2, "two processes"
    ),
    "lightning_ppo_grouped_compiled": System(
        "lightning_ppo, rollout.processes=2 compile=true, on twice the cores",
        *("race_lightning_ppo", None, 2, "two processes, compiled"),
    ),
    "lightning_ppo_overlapped": System(
        "lightning_ppo, rollout.overlap=true, on twice the cores", "race_lightning_ppo", None, 2, "overlapped"
    ),
    "lightning_ppo_overlapped_compiled": System(
        "lightning_ppo, rollout.overlap=true compile=true, on twice the cores",
        *("race_lightning_ppo", None, 2, "overlapped, compiled"),
    ),
    "lightning_ppo_float32": System(
        "lightning_ppo, eager, trainer.precision=32-true", "race_lightning_ppo", mode="eager, float32"
    ),
    "lightning_ppo_float32_compiled": System(
        "lightning_ppo, compile=true, trainer.precision=32-true", "race_lightning_ppo", mode="compiled, float32"
    ),
    "sb3": System("Stable-Baselines3", "race_sb3", "sb3"),
    "sbx": System("SBX (JAX)", "race_sb3", "sbx"),
    "sheeprl": System("SheepRL", "race_sheeprl", "sheeprl"),
    "single_file": System("single-file loop, CleanRL-style", "race_single_file"),
    "environment": System("environment alone, no learning", "race_environment"),
}
OURS = tuple(name for name, system in SYSTEMS.items() if system.mode)
WORKLOADS = {
    "CartPole-v1, 4 envs x 128, 4 epochs x 4 minibatches": Race("", "CartPole-v1", 4, 128, 4, 128, 100, False, 1),
    "HalfCheetah-v5, 1 env x 2048, 10 epochs x 32 minibatches": (
        Race("", "HalfCheetah-v5", 1, 2048, 10, 64, 10, True, 1)
    ),
    "HalfCheetah-v5, 8 envs x 256, 10 epochs x 32 minibatches": (
        Race("", "HalfCheetah-v5", 8, 256, 10, 64, 10, True, 1)
    ),
    "CartPole-v1, 64 envs x 128, 4 epochs x 4 minibatches": Race("", "CartPole-v1", 64, 128, 4, 2048, 50, False, 1),
    "Pong, 8 envs x 128, 4 epochs x 4 minibatches, 2 cores": (
        Race("", "ALE/Pong-v5", 8, 128, 4, 256, 10, False, 1, cores=2)
    ),
}
FLOAT32 = ("lightning_ppo_float32", "lightning_ppo_float32_compiled")
"""Who races on Atari only, where `train.py` takes bfloat16 by itself if the CPU computes it."""
ATARI = ("lightning_ppo", "lightning_ppo_compiled", *FLOAT32, "sb3", "environment")
"""Who races on Atari: the others have no convolutions here."""
TINY = {
    "CartPole-v1, tiny": Race("", "CartPole-v1", 2, 16, 2, 16, WARM_UP + 1, False, 1),
    "Pendulum-v1, tiny": Race("", "Pendulum-v1", 2, 16, 2, 16, WARM_UP + 1, True, 1),
    "Pong, tiny": Race("", "ALE/Pong-v5", 2, 16, 1, 16, WARM_UP + 1, False, 1, cores=2),
}


def speed(times: Sequence[float], env_steps: Sequence[int]) -> float:
    """Return environment steps per second between the end of the warm-up and the end of the last iteration.

    Args:
        times: When each iteration ended, in seconds.
        env_steps: How many environment steps there had been by then.
    """
    return (env_steps[-1] - env_steps[WARM_UP - 1]) / (times[-1] - times[WARM_UP - 1])


def race(workload: str, task: Race, name: str, repeat: int) -> dict[str, Any]:
    """Run one racer once and return its row.

    Raises:
        SystemExit: If it fails, with what it said.
    """
    system = SYSTEMS[name]
    python = str(peer_python(system.venv)) if system.venv else sys.executable
    script = PEERS / f"{system.script}.py"
    # JAX would take as many cores as there are
    count = task.cores * system.processes
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[-count:])) if hasattr(os, "sched_getaffinity") else ""
    pin = ["taskset", "-c", cores] if cores else []
    started = time.time()
    finished = subprocess.run(
        [*pin, python, script, json.dumps(asdict(replace(task, system=name, seed=repeat)))],
        env={**os.environ, "OMP_NUM_THREADS": str(task.cores)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    if finished.returncode or not lines:
        raise SystemExit(f"{name} failed in {workload}\n{finished.stderr}")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    if len(result["times"]) != task.iterations:
        raise SystemExit(f"{name} did {len(result['times'])} iterations instead of {task.iterations} in {workload}")
    return {
        "workload": workload,
        "system": name,
        "repeat": repeat,
        "env_steps_per_second": speed(result["times"], result["env_steps"]),
        "start_seconds": result["times"][0] - started,
        "compile_seconds": result["compile_seconds"],
        "peak_memory_mb": result["peak_memory_mb"],
        "iterations": task.iterations,
        "versions": json.dumps(result["versions"]),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


def takes_part(name: str, task: Race) -> bool:
    """Return whether a system races in a task: a single environment cannot be shared by processes."""
    if task.is_atari:
        return name in ATARI
    return name not in FLOAT32 and ("grouped" not in name or task.num_envs > 1)


def race_all(results: Path, workloads: dict[str, Race], systems: Sequence[str], runs: int) -> None:
    """Race interleaved, and write a row per run as it ends; runs that have a row are over."""
    results.parent.mkdir(parents=True, exist_ok=True)
    if not results.exists():
        write_rows(results, [])
    done = {(row["workload"], row["system"], int(row["repeat"])) for row in read_rows(results)}
    with open(results, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        for workload, task in workloads.items():
            for repeat in range(1, runs + 1):
                for name in systems:
                    if (workload, name, repeat) in done or not takes_part(name, task):
                        continue
                    row = race(workload, task, name, repeat)
                    writer.writerow(row)
                    file.flush()
                    rate = f"{row['env_steps_per_second']:,.0f} steps/s"
                    print(f"{workload} | {name} | {repeat} of {runs}: {rate}", flush=True)


def write_rows(results: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write a file of results anew."""
    with open(results, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def medians(rows: Sequence[dict[str, str]], column: str) -> dict[str, dict[str, float]]:
    """Return the median of a column by workload and system."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault(row["workload"], {}).setdefault(row["system"], []).append(float(row[column]))
    return {w: {s: statistics.median(v) for s, v in by_system.items()} for w, by_system in values.items()}


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the tables of a race as lines of Markdown."""
    order = {name: number for number, name in enumerate((*WORKLOADS, *SYSTEMS))}
    rows = sorted(rows, key=lambda row: (order.get(row["workload"], -1), order.get(row["system"], -1)))
    rates, starts, compiles, memory = (
        medians(rows, column)
        for column in ("env_steps_per_second", "start_seconds", "compile_seconds", "peak_memory_mb")
    )
    lines = []
    for workload, by_system in rates.items():
        runs = {
            s: [float(r["env_steps_per_second"]) for r in rows if (r["workload"], r["system"]) == (workload, s)]
            for s in by_system
        }
        bare, modes = by_system.get("environment"), [ours for ours in OURS if ours in by_system]
        lines += [
            f"### {workload}",
            "",
            f"| system | env steps/s, median (range) | {' | '.join(SYSTEMS[ours].mode for ours in modes)} | "
            "share of the bare environment | to the first update, s | of that compiling, s | peak memory, MB |",
            "|---" * (len(modes) + 6) + "|",
        ]
        for name, rate in by_system.items():
            against = [f"{by_system[ours] / rate:.2f}x" if name not in (*OURS, "environment") else "" for ours in modes]
            alone = SYSTEMS[name].processes == 1 and name != "environment"
            share = f"{rate / bare:.0%}" if bare and alone else ""
            compiling = f"{compiles[workload][name]:.1f}" if compiles[workload][name] else ""
            lines.append(
                f"| {SYSTEMS[name].label} | {rate:,.0f} ({min(runs[name]):,.0f} to {max(runs[name]):,.0f}) | "
                f"{' | '.join(against)} | {share} | {starts[workload][name]:.1f} | {compiling} | "
                f"{memory[workload][name]:,.0f} |"
            )
        lines.append("")
    repeats = min(sum(r["workload"] == w and r["system"] == s for r in rows) for w in rates for s in rates[w])
    versions: dict[str, str] = {}
    for row in rows:
        versions |= json.loads(row["versions"])
    listed = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    found = {
        name: " and ".join(dict.fromkeys(row[name] for row in rows)) for name in ("date", "commit", "cpu", "cores")
    }
    lines.append(
        f"At least {repeats} runs each, interleaved, one core each unless title or system say otherwise, "
        f"{found['cpu']} ({found['cores']} cores), "
        f"{found['date']}, commit {found['commit']}; {listed}."
    )
    return lines


def draw(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Draw a bar per system and workload, in environment steps per second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = medians([row for row in rows if row["system"] != "environment"], "env_steps_per_second")
    figure, axes = plt.subplots(len(rates), 1, figsize=(8, 2.2 * len(rates)), squeeze=False, layout="constrained")
    for axis, (workload, by_system) in zip(axes.flat, rates.items(), strict=True):
        names = [*reversed(by_system)]
        colors = ["0.6" if name not in OURS else f"C{SYSTEMS[name].processes - 1}" for name in names]
        bars = axis.barh([SYSTEMS[name].label for name in names], [by_system[name] for name in names], color=colors)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axis.set_title(workload, fontsize="medium", loc="left")
        axis.margins(x=0.12)
    axes.flat[-1].set_xlabel("environment steps per second, learning included")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(page: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the tables between the markers of a Markdown page, and the bar chart beside it."""
    begin, end = "<!-- race: begin -->", "<!-- race: end -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([before + begin, *table(rows), end + after]))
    draw(page.with_suffix(".png"), rows)


def smoke(systems: Sequence[str]) -> None:
    """Race a few iterations of tiny workloads and report them into a temporary page."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.md"
        page.write_text("<!-- race: begin -->\n<!-- race: end -->\n")
        race_all(Path(folder) / "speed.csv", TINY, systems, 1)
        report(page, read_rows(Path(folder) / "speed.csv"))
        print(page.read_text())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each system on each workload")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS])
    parser.add_argument("--workloads", nargs="+", type=int, choices=range(len(WORKLOADS)), help="numbers, from 0")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        smoke(options.systems)
        return
    results = RESULTS / "speed.csv"
    names = [*WORKLOADS]
    chosen = [names[n] for n in options.workloads] if options.workloads else names
    if options.anew and results.exists():
        kept = [r for r in read_rows(results) if r["workload"] not in chosen or r["system"] not in options.systems]
        write_rows(results, kept)
    if not options.report_only:
        race_all(results, {name: WORKLOADS[name] for name in chosen}, options.systems, options.runs)
    report(options.page, read_rows(results))


if __name__ == "__main__":
    main()
