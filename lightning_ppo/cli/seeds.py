"""`train seed=1,2,3` or `train seeds=5`: one run for each seed, in one folder, and what they say together."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_ppo.support.cores import usable_cores
from lightning_ppo.support.errors import ConfigError, one_line

SEEDS = re.compile(r"(?P<key>seeds?)=(?P<value>.*)")


def take_seeds(arguments: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the seeds of several runs, none where a single one is asked for, and the other arguments.

    Raises:
        ConfigError: If several are asked for in a way that cannot be read.
    """
    seeds: list[int] = []
    others = []
    for argument in arguments:
        match = SEEDS.fullmatch(argument)
        value = match["value"].strip("[] ") if match else ""
        several = match is not None and (match["key"] == "seeds" or "," in value)
        if not several:
            others.append(argument)
            continue
        texts = [text.strip() for text in value.split(",")]
        if not all(text.isdigit() for text in texts) or len({*texts}) < len(texts) or texts == ["0"]:
            raise ConfigError(f"{argument}: expected seed=1,2,3 or seeds=5, the number of runs")
        seeds = [int(text) for text in texts]
        if len(texts) == 1:
            seeds = list(range(1, seeds[0] + 1))
    return seeds, others


def train_seeds(seeds: Sequence[int], arguments: Sequence[str], train: str) -> int:
    """Train once for each seed, side by side on the cores there are, and print what the runs say together.

    The same command with the same `run_dir` goes on with runs that were stopped and leaves those that have ended.

    Args:
        seeds: The seeds.
        arguments: Those of `train`, without seeds.
        train: How the command was called.

    Returns:
        0; 1 if a run failed; 130 or 143 if a signal stopped them.

    Raises:
        ConfigError: If a setting is wrong.
    """
    from lightning_ppo.run.arguments import read_arguments
    from lightning_ppo.run.run_directory import RUN_DIR_VARIABLE, choose_run_dir
    from lightning_ppo.settings.existence import check_existence

    own = [argument for argument in arguments if not argument.startswith(("run_dir=", "resume="))]
    if any(argument.startswith("resume=") and argument != "resume=auto" for argument in arguments):
        raise ConfigError("resume: several seeds go on by themselves where run_dir has them; leave resume out")
    config = read_arguments([argument for argument in arguments if not argument.startswith("resume=")])
    check_existence(config)
    named = RUN_DIR_VARIABLE in os.environ
    parent = choose_run_dir(config)
    if not named:  # of this command alone
        os.environ.pop(RUN_DIR_VARIABLE, None)
    if (parent / "config.yaml").exists():
        raise ConfigError(f"run_dir: {parent} is the directory of a single run; name another for several seeds")
    parent.mkdir(parents=True, exist_ok=True)
    side_by_side = min(len(seeds), runs_that_fit(config))
    print(f"{len(seeds)} seeds, {side_by_side} at a time, in {parent}", flush=True)
    waiting, running, codes = list(seeds), dict[int, subprocess.Popen](), dict[int, int]()
    received: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        received.append(number)
        for process in running.values():
            process.send_signal(number)

    previous = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        while running or (waiting and not received):
            while waiting and len(running) < side_by_side and not received:
                seed = waiting.pop(0)
                running[seed] = _start(seed, own, parent, side_by_side > 1)
            time.sleep(0.1)
            for seed, process in [*running.items()]:
                if process.poll() is not None:
                    codes[seed] = running.pop(seed).returncode
                    print(_ended(seed, codes[seed], parent), flush=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        again = shlex.join([*own, f"seed={','.join(map(str, seeds))}", f"run_dir={parent}"])
        print(f"stopped; go on with: {train} {again}", file=sys.stderr)
        return 130 if received[0] == signal.SIGINT else 143
    print(_together(parent, seeds))
    return 1 if any(codes.values()) else 0


def runs_that_fit(config: Any) -> int:
    """Return how many runs of these settings the cores can hold side by side; one where there is a GPU."""
    accelerator, devices = (config.trainer.get(name, "auto") for name in ("accelerator", "devices"))
    if (shutil.which("nvidia-smi") and accelerator != "cpu") or config.env.backend == "async":
        return 1
    ranks = devices if isinstance(devices, int) and devices > 0 else 1
    return max(1, usable_cores() // (ranks * (config.rollout.processes + config.rollout.overlap)))


def _folder(parent: Path, seed: int) -> Path:
    return parent / f"seed-{seed}"


def _log(parent: Path, seed: int) -> Path:
    return parent / f"seed-{seed}.log"


def _start(seed: int, arguments: Sequence[str], parent: Path, aside: bool) -> subprocess.Popen:
    """Start a run in a session of its own, so that Ctrl-C reaches it once; `aside` sends what it says to a file."""
    environment = dict(os.environ)
    if Path(sys.argv[0]).name == "train.py":  # a clone, which need not be installed
        paths = [str(Path(sys.argv[0]).resolve().parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "lightning_ppo", "train", *arguments]
    command += [f"seed={seed}", f"run_dir={_folder(parent, seed)}", "resume=auto"]
    if not aside:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    environment.setdefault("OMP_NUM_THREADS", "1")
    with open(_log(parent, seed), "a") as file:
        return subprocess.Popen(command, env=environment, start_new_session=True, stdout=file, stderr=file)


def _ended(seed: int, code: int, parent: Path) -> str:
    if code == 0:
        return f"seed {seed}: {_returns(parent, seed)}"
    log = _log(parent, seed)
    lines = log.read_text().split("\n") if log.is_file() else []
    said = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    return f"seed {seed}: {one_line(said)}"


def _returns(parent: Path, seed: int) -> str:
    summary = _summary(parent, seed) or {}
    shown = [(name, summary.get(f"{key}_return_mean")) for name, key in (("training", "train"), ("evaluation", "eval"))]
    return ", ".join(f"{name} return {value:,.1f}" for name, value in shown if value is not None) or "no episode ended"


def _summary(parent: Path, seed: int) -> dict[str, Any] | None:
    file = _folder(parent, seed) / "summary.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _together(parent: Path, seeds: Sequence[int]) -> str:
    """Return the table over seeds, and write the report with the curves."""
    from lightning_ppo.report import find_runs, make_page, read_run
    from lightning_ppo.support.statistics import over_seeds

    lines = []
    for name, key in (("training return", "train_return_mean"), ("evaluation return", "eval_return_mean")):
        found = [(_summary(parent, seed) or {}).get(key) for seed in seeds]
        values = [value for value in found if value is not None]
        if values:
            lines.append(f"{name:<18}  {over_seeds(values)}")
    runs = [read_run(path) for path in find_runs(parent) if (path / "metrics.csv").is_file()]
    if runs:
        page = parent / "report.html"
        page.write_text(make_page(runs), encoding="utf-8")
        lines.append(f"{'curves':<18}  {page}")
    return "\n" + "\n".join(lines)
