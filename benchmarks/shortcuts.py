"""Measure the gain of each shortcut of `lightning_ppo.speed`: trainings with all of them, and with each one off.

    python benchmarks/shortcuts.py                  all workloads, 5 runs of each, into the table of docs/speed.md
    python benchmarks/shortcuts.py --workloads gru  some of it; the page shows what has been measured
    python benchmarks/shortcuts.py --report-only    the table from existing rows
    python benchmarks/shortcuts.py --smoke          does everything work? few iterations, no figures kept

Nothing else should run meanwhile. Each run is a process of its own that trains as `lightning-ppo train` does, with its
logging on. Runs are interleaved: every variant once, then every variant again. A row is kept in
benchmarks/results/shortcuts.csv as each run ends; the same command continues where it was stopped.

A variant is compared with the run of the same round that takes all shortcuts. The gain of the compiled update is in
the race of `benchmarks/speed.py`.
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
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.learning import RESULTS, ROOT, cpu_name, read_rows

BEGIN, END = "<!-- shortcuts: begin -->", "<!-- shortcuts: end -->"
WARM_UP = 3
"""Iterations of a run that do not count."""
COLUMNS = (
    "workload",
    "without",
    "run",
    "env_steps_per_second",
    "iterations",
    "torch",
    "cpu",
    "cores",
    "date",
    "commit",
)
PLAIN, NOTHING = "all", "nothing"


class Workload(NamedTuple):
    """A training that people run."""

    title: str
    iterations: int
    settings: tuple[str, ...]
    cores: int = 1


CHEETAH = (
    *("env.id=HalfCheetah-v5", "env.num_envs=8", "rollout.num_steps=256"),
    *("update.epochs=10", "update.minibatch_size=64"),
)
GRU = ("policy.core=gru", "env.num_envs=8", "rollout.num_steps=256")
RANKS = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
SMALL_CARTPOLE = (*("env.num_envs=4", "rollout.num_steps=128", "update.epochs=4", "update.minibatch_size=128"),)
ONE_CHEETAH = (
    *("env.id=HalfCheetah-v5", "env.num_envs=1", "rollout.num_steps=2048"),
    *("update.epochs=10", "update.minibatch_size=64"),
)
PONG = ("env.id=ALE/Pong-v5", "env.num_envs=8", "rollout.num_steps=128")
WORKLOADS = {
    "cartpole": Workload("CartPole-v1, two networks of 64x64, defaults", 16, ()),
    "halfcheetah": Workload("HalfCheetah-v5, 8 envs x 256, 10 epochs x 32 minibatches", 12, CHEETAH),
    "small": Workload("CartPole-v1, 4 envs x 128, 4 epochs x 4 minibatches", 200, SMALL_CARTPOLE),
    "single": Workload("HalfCheetah-v5, 1 env x 2048, 10 epochs x 32 minibatches", 12, ONE_CHEETAH),
    "gru": Workload("CartPole-v1 with a GRU, 8 envs x 256", 12, GRU),
    "ranks": Workload("CartPole-v1, defaults, on two ranks", 16, RANKS, 2),
    "pictures": Workload("Pong, 8 envs x 128, 2 cores", 8, PONG, 2),
}

SMALL = ("env.num_envs=2", "rollout.num_steps=32", "update.minibatch_size=32", "update.epochs=1")
"""Settings that let a training end at once, where nothing is measured."""


class Variant(NamedTuple):
    """A training in which one shortcut is off."""

    what: str
    """The shortcut."""
    turn_off: Callable[[], Any]
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    """Those that it is for."""


def _off(module: str) -> Callable[[], Any]:
    """Return what turns the switch off for one module of `lightning_ppo`."""

    class Off:
        is_on, turn = staticmethod(lambda: False), staticmethod(lambda on: None)

    return lambda: patch(f"lightning_ppo.{module}.switch", Off).start()


def _instead(target: str, replacement: Any) -> Callable[[], Any]:
    return lambda: patch(f"lightning_ppo.{target}", replacement).start()


def _pictures_as_they_come() -> None:
    _off("policy.images")()
    _instead("policy.actor_critic.ActorCritic.lay_out", lambda self, observations: observations)()


def _casts_made_anew() -> None:
    from contextlib import nullcontext

    _instead("collection.collector.autocast_cache", lambda enabled: nullcontext())()


def _log_dict(module: Any, metrics: dict[str, float]) -> None:
    module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)


def _lightnings_step() -> None:
    from lightning_ppo.speed import shortcuts

    listens = shortcuts.nobody_listens

    def nobody_listens(module: Any, *hooks: str) -> bool:
        return "on_before_optimizer_step" not in hooks and listens(module, *hooks)

    patch("lightning_ppo.speed.shortcuts.nobody_listens", nobody_listens).start()


VARIANTS = {
    NOTHING: Variant("", lambda: None),
    PLAIN: Variant("all of them (`plain=true`)", lambda: None),
    "acting": Variant(
        "acting in NumPy",
        _off("collection.acting"),
        ("cartpole", "halfcheetah", "small", "single", "gru", "ranks"),
    ),
    "recurrence": Variant("sequences of a GRU in NumPy", _off("policy.recurrence"), ("gru",)),
    "buffers": Variant(
        "parameters and gradients in one buffer, no unused hooks around backward passes",
        _instead("speed.flat.FlatParameters.suits", staticmethod(lambda parameters: False)),
    ),
    "adam": Variant("Adam in one call", _instead("speed.flat.FlatAdam.lay_out", lambda *_: None)),
    "step": Variant("no unused hooks around the optimizer's step", _lightnings_step),
    "logging": Variant("metrics written into Lightning's results", _instead("speed.shortcuts.log_metrics", _log_dict)),
    "scan": Variant("advantages by a scan", _off("rollout.advantages"), ("halfcheetah", "single", "gru")),
    "memory": Variant("freed memory is kept", _instead("speed.freed_memory.keep_freed_memory", lambda: None)),
    "sums": Variant("sums through shared memory", _instead("speed.shared_sums.connect", lambda *_: None), ("ranks",)),
    "layout": Variant("images with channels last in memory", _pictures_as_they_come, ("pictures",)),
    "casts": Variant("weights cast to half precision once a rollout", _casts_made_anew, ("pictures",)),
}


def train(workload: str, without: str, iterations: int, more: Sequence[str]) -> None:
    """Train, as one rank of a run, and print on rank 0 the environment steps per second after the warm-up."""
    import pytorch_lightning as pl
    import torch

    from lightning_ppo.run.training import train as run
    from lightning_ppo.settings.loading import load

    VARIANTS[without].turn_off()
    ends: list[tuple[float, int]] = []

    class Laps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            ends.append((time.perf_counter(), module.env_steps))
            trainer.should_stop = len(ends) == iterations

    settings = ["total_env_steps=100000000", "evaluation.episodes=0", "evaluation.final_episodes=0", "seed=1"]
    settings += ["trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false"]
    settings += [f"run_dir={tempfile.mkdtemp()}", f"plain={without == PLAIN}", "compile=false"]
    settings += [*WORKLOADS[workload].settings, *more]
    run(load([ROOT / "configs" / "atari.yaml"] if workload == "pictures" else [], settings), [Laps()])
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        rates = [(steps - before) / (end - start) for (start, before), (end, steps) in pairwise(ends[WARM_UP - 1 :])]
        print("RESULT " + json.dumps({"rate": statistics.median(rates), "torch": torch.__version__}), flush=True)


def measure(workload: str, without: str, run: int, iterations: int, more: Sequence[str] = ()) -> dict[str, Any]:
    """Return the row of one run.

    Raises:
        SystemExit: If it fails, with what it said.
    """
    count = WORKLOADS[workload].cores
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[-count:])) if hasattr(os, "sched_getaffinity") else ""
    pin = ["taskset", "-c", cores] if cores else []
    threads = str(count) if workload == "pictures" else "1"
    finished = subprocess.run(
        [*pin, sys.executable, __file__, "--train", workload, without, str(iterations), *more],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    if finished.returncode or not lines:
        raise SystemExit(f"{workload} without {without} failed\n{finished.stderr}")
    found = json.loads(lines[-1].removeprefix("RESULT "))
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "workload": workload,
        "without": without,
        "run": run,
        "env_steps_per_second": round(found["rate"], 1),
        "iterations": iterations,
        "torch": found["torch"],
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
    }


def measure_all(results: Path, workloads: Sequence[str], runs: int, smoke: bool = False) -> None:
    """Measure interleaved, and write a row as each run ends; runs that have a row are over."""
    more = SMALL if smoke else ()
    new = not results.exists()
    done = set() if new else {(row["workload"], row["without"], int(row["run"])) for row in read_rows(results)}
    with open(results, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for workload in workloads:
            for run in range(1, runs + 1):
                for without, variant in VARIANTS.items():
                    if workload not in variant.workloads or (workload, without, run) in done:
                        continue
                    iterations = WARM_UP + 1 if smoke else WORKLOADS[workload].iterations
                    row = measure(workload, without, run, iterations, more)
                    writer.writerow(row)
                    file.flush()
                    rate = f"{row['env_steps_per_second']:,.0f} steps/s"
                    print(f"{workload} | without {without} | {run} of {runs}: {rate}", flush=True)


def gains(rows: Sequence[dict[str, Any]], workload: str, without: str) -> list[float]:
    """Return how much faster training is with a shortcut than without, 0.05 for 5 %, of each round."""
    rates = {
        (row["without"], row["run"]): float(row["env_steps_per_second"]) for row in rows if row["workload"] == workload
    }
    pairs = [(rates.get((NOTHING, run)), rate) for (name, run), rate in rates.items() if name == without]
    return [fast / slow - 1.0 for fast, slow in pairs if fast is not None]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the table: what each shortcut brings, as the median and the range of the rounds."""
    measured = [name for name in WORKLOADS if any(row["workload"] == name for row in rows)]
    lines = ["", "| shortcut | " + " | ".join(WORKLOADS[name].title for name in measured) + " |"]
    lines.append("|---" * (len(measured) + 1) + "|")
    for without, variant in VARIANTS.items():
        if without == NOTHING:
            continue
        cells = []
        for workload in measured:
            found = gains(rows, workload, without)
            low, median, high = (min(found), statistics.median(found), max(found)) if found else (0.0, 0.0, 0.0)
            cells.append(f"{median:+.1%} ({low:+.1%} to {high:+.1%})" if found else "")
        lines.append(f"| {variant.what} | " + " | ".join(cells) + " |")
    if rows:
        last = rows[-1]
        rounds = max(int(row["run"]) for row in rows)
        about = f"{rounds} rounds, {last['cpu']} ({last['cores']} cores), torch {last['torch']}, {last['date']}"
        lines += ["", f"{about}, commit {last['commit']}."]
    return lines


def report(page: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table between the markers of a Markdown page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, *table(rows), END + after]))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each variant of each workload (default: 5)")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        workload, without, iterations, *more = options.train
        train(workload, without, int(iterations), more)
        return
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            measure_all(Path(folder) / "rows.csv", options.workloads, 1, smoke=True)
            print("\n".join(table(read_rows(Path(folder) / "rows.csv"))))
        return
    results = RESULTS / "shortcuts.csv"
    if not options.report_only:
        measure_all(results, options.workloads, options.runs)
    report(options.page, read_rows(results))


if __name__ == "__main__":
    main()
