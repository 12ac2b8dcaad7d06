"""`tune [CONFIG ...] [key=value ...]`: measure which settings are fastest on this machine."""

import argparse
import importlib
import shlex
from typing import TYPE_CHECKING

from lightning_ppo.support.errors import ConfigError, require
from lightning_ppo.support.program import columns, program

if TYPE_CHECKING:
    from lightning_ppo.run.tuning import Trial

NAME = "tune"
HELP = "measure which backend, processes, threads, compile and precision are fastest here"
EXAMPLES = (
    ("tune halfcheetah", "prints the overrides to train with"),
    ("tune mine.yaml env.num_envs=16 --seconds 180", "with settings as of `train`, and time for more trials"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("settings", metavar="CONFIG|KEY=VALUE", nargs="*", help="configs and settings, as of `train`")
    parser.add_argument("--seconds", type=float, default=60.0, help="no trial is begun later (default: 60)")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    require(options.seconds >= 0, f"--seconds: must not be negative, got {options.seconds:g}")
    from lightning_ppo.run.arguments import read_arguments
    from lightning_ppo.settings.existence import check_existence

    config = read_arguments(options.settings)
    if config.resume is not None:
        raise ConfigError("resume: tune measures the settings of a new run; leave it out")
    check_existence(config)
    importlib.import_module("lightning_ppo.speed.light_lightning")  # before anything imports Lightning
    from lightning_ppo.run.stopping import Interrupted
    from lightning_ppo.run.training import quiet
    from lightning_ppo.run.tuning import iterations_of, tune

    quiet()
    size, iterations = config.env.num_envs * config.rollout.num_steps, iterations_of(config)
    print(f"{config.env.id}: {config.env.num_envs} envs x {config.rollout.num_steps} steps, one rank", flush=True)
    measured: dict[tuple[str, ...], Trial] = {}
    try:
        for trial in tune(config, options.seconds):
            again = measured.get(trial.overrides, trial)
            measured[trial.overrides] = min(trial, again, key=lambda one: (one.failure, one.run_seconds(iterations)))
            print(f"measured {' '.join(trial.overrides) or 'the settings as they are'}", flush=True)
    except Interrupted as stopped:
        return stopped.exit_code
    trials = [*measured.values()]
    print(f"\n{_table(trials, size, iterations)}\n\n{_advice(trials, options.settings, iterations)}")
    return 0


def _table(trials: "list[Trial]", size: int, iterations: int) -> str:
    rows = [("", "steps/s", "collecting", "updating", "compiling", "whole run")]
    for trial in trials:
        name = " ".join(trial.overrides) or "as they are"
        if trial.failure:
            rows.append((name, trial.failure, "", "", "", ""))
            continue
        rows.append(
            (
                name,
                f"{size / trial.iteration_seconds:,.0f}",
                f"{1e3 * trial.collect_seconds:,.0f} ms",
                f"{1e3 * trial.update_seconds:,.0f} ms",
                f"{trial.compile_seconds:.1f} s" if trial.compile_seconds else "-",
                f"{trial.run_seconds(iterations):,.0f} s",
            )
        )
    return columns(rows)


def _advice(trials: "list[Trial]", settings: list[str], iterations: int) -> str:
    """Return the command to train with."""
    base = trials[0]
    best = min((trial for trial in trials if not trial.failure), key=lambda trial: trial.run_seconds(iterations))
    if not best.beats(base, iterations):
        return "nothing that was tried is clearly faster than the settings as they are"
    threads = [override for override in best.overrides if override.startswith("OMP_")]
    others = [override for override in best.overrides if override not in threads]
    command = " ".join([*threads, program(), "train", shlex.join([*settings, *others])])
    faster = base.run_seconds(iterations) / best.run_seconds(iterations)
    pool = "\nwith EnvPool a resumed run restarts its episodes" if "env.backend=envpool" in others else ""
    return f"{faster:.2f} times as fast, less evaluations:\n  {command}{pool}"
