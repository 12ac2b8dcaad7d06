"""Measure which settings that change nothing but the speed are fastest on this machine.

Short trainings, one after the other in this process: first as the settings are, then each with one setting more than
the fastest so far. Each has the config's own environment, rollouts and minibatches.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_ppo.run.advice import stepped_by
from lightning_ppo.settings.loading import load_over, to_container
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.cores import usable_cores
from lightning_ppo.support.errors import UserError, one_line
from lightning_ppo.support.packages import installed

GAIN = 1.05
"""How many times faster a run has to be for a setting to be worth it; less is noise."""
WARM_UP = 1
"""Iterations that are not counted: the first compiles, and resets the environments."""
LAPS = 2
"""Iterations that are counted at least."""
TRIAL_SECONDS = 2.0
"""Time in which iterations are counted."""
ASYNC_COPIES = 8
"""Copies of the environment for each core up to which one process for each copy is tried."""
KEPT = ("accelerator", "precision", "deterministic")
"""Settings of the Trainer that a trial has, too."""


@dataclass(frozen=True)
class Trial:
    """What was measured with some overrides.

    Attributes:
        overrides: `key=value`, and the number of threads as `OMP_NUM_THREADS=2`.
        collect_seconds: Collecting a rollout, median.
        update_seconds: Updating, median.
        iteration_seconds: A whole iteration, median.
        compile_seconds: Compiling, once.
        failure: Why it could not be measured.
    """

    overrides: tuple[str, ...]
    collect_seconds: float = 0.0
    update_seconds: float = 0.0
    iteration_seconds: float = 0.0
    compile_seconds: float = 0.0
    failure: str = ""

    def run_seconds(self, iterations: int) -> float:
        """Return how long a training of so many iterations takes, less evaluations."""
        return self.compile_seconds + iterations * self.iteration_seconds

    def beats(self, other: "Trial", iterations: int) -> bool:
        """Return whether a training is faster so, by more than noise."""
        return not self.failure and GAIN * self.run_seconds(iterations) < other.run_seconds(iterations)


def tune(config: Config, seconds: float) -> Iterator[Trial]:
    """Measure, and yield each trial when it is done; the first is that of the settings as they are.

    Args:
        config: The settings.
        seconds: No trial is begun later than this.

    Raises:
        UserError: If the settings as they are do not work.
    """
    started = time.perf_counter()
    config, groups = _candidates(config)
    base = best = measure(config, ())
    yield base
    for group in groups:
        found = best
        for override in group:
            trial = Trial((*best.overrides, override), failure="not tried; --seconds has more time")
            if time.perf_counter() - started < seconds:
                trial = _attempt(config, trial.overrides, base)
            yield trial
            found = trial if trial.beats(found, iterations_of(config)) else found
        best = found
    for trial in (base, best) if best.overrides else ():  # was it only a busy moment?
        yield _attempt(config, trial.overrides, base)


def _attempt(config: Config, overrides: tuple[str, ...], base: Trial) -> Trial:
    """Measure, and count for compiling what it took first, when nothing was in the compiler's cache."""
    try:
        trial = measure(config, overrides)
    except UserError as error:
        return Trial(overrides, failure=one_line(error, 80))
    first = max(trial.compile_seconds, base.compile_seconds) if trial.compile_seconds else 0.0
    return replace(trial, compile_seconds=first)


def iterations_of(config: Config) -> int:
    """Return the iterations of a training."""
    return max(1, config.total_env_steps // (config.env.num_envs * config.rollout.num_steps))


def measure(config: Config, overrides: tuple[str, ...]) -> Trial:
    """Train for some iterations and return what they took; nothing is written and no state of the process changes.

    Raises:
        UserError: If these settings do not work.
    """
    import torch

    from lightning_ppo.run.building import build
    from lightning_ppo.run.callbacks import Laps, Timing
    from lightning_ppo.run.trainer import build_trainer
    from lightning_ppo.speed.hardware import use_cores
    from lightning_ppo.update.checks import check_fit

    threads, before = _threads(overrides), torch.get_num_threads()
    config = _short(load_over(to_container(config), [], [o for o in overrides if not o.startswith("OMP_")]))
    laps = Laps(WARM_UP + LAPS, TRIAL_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        data, model = build(config)
        trainer = build_trainer(config, Path(folder), Timing(), model, None, [laps], data.env)
        use_cores(model.policy)
        if threads:
            torch.set_num_threads(threads)
        try:
            check_fit(model, data, trainer)
            trainer.fit(model, data)
        finally:
            data.teardown("fit")
            torch.set_num_threads(before)
    collect, update, whole = map(statistics.median, zip(*laps.laps[WARM_UP:], strict=True))
    return Trial(overrides, collect, update, whole, model.compile_seconds)


def _short(config: Config) -> Config:
    """Return the settings of a training that only collects and updates, and goes on until it is told to stop."""
    size = config.env.num_envs * config.rollout.num_steps
    given = {name: value for name, value in config.trainer.items() if name in KEPT}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return replace(
        config,
        total_env_steps=max(config.total_env_steps, 10_000 * size),
        evaluation=replace(config.evaluation, episodes=0, final_episodes=0),
        callbacks=[],
        loggers=[],
        trainer={**given, **quiet},
    )


def _threads(overrides: tuple[str, ...]) -> int:
    return next((int(o.partition("=")[2]) for o in overrides if o.startswith("OMP_NUM_THREADS=")), 0)


def _candidates(config: Config) -> tuple[Config, list[list[str]]]:
    """Return the settings with `compile=auto` resolved, and groups of overrides of which at most one is taken.

    None of them changes what is learnt, but for rounding and noise.
    """
    from lightning_ppo.run.building import build
    from lightning_ppo.run.callbacks import Timing
    from lightning_ppo.run.trainer import build_trainer
    from lightning_ppo.speed.hardware import computes_bfloat16, has_convolutions
    from lightning_ppo.update.compiling import choose, speaks_against

    with tempfile.TemporaryDirectory() as folder:
        data, model = build(replace(_short(config), total_env_steps=config.total_env_steps))
        trainer = build_trainer(_short(config), Path(folder), Timing(), model, None, [], data.env)
        if config.compile == "auto":
            config = replace(config, compile=choose(model, data, trainer).compiled)
        single = stepped_by(data.env)
        data.teardown("fit")
    pixels, cores, processes = has_convolutions(model.policy), usable_cores(), config.rollout.processes
    groups = [[f"compile={str(not config.compile).lower()}"]] if speaks_against(model, trainer) is None else []
    if trainer.strategy.root_device.type == "cpu":
        now = int(os.environ.get("OMP_NUM_THREADS") or (cores if pixels else 1))
        groups.append([f"OMP_NUM_THREADS={count}" for count in sorted({1, cores} - {now})])
        if pixels and computes_bfloat16():
            groups.append([f"trainer.precision={p}" for p in ("32-true", "bf16-mixed") if p != trainer.precision])
    if single and config.env.num_envs <= ASYNC_COPIES * cores and processes == 1 and not config.rollout.overlap:
        groups.append([f"env.backend={name}" for name in ("sync", "async") if name != single])
    if single and _has_pool(config):
        groups.append(["env.backend=envpool"])
    if single != "async":
        counts = {1, *(2**power for power in range(1, cores.bit_length())), cores} - {processes}
        groups.append([f"rollout.processes={count}" for count in sorted(counts) if count <= config.env.num_envs])
    return config, groups


def _has_pool(config: Config) -> bool:
    """Return whether EnvPool is there and steps the same task as Gymnasium does."""
    from lightning_ppo.envs.pool import SAME_AS_GYMNASIUM

    env = config.env
    plain = not env.wrappers and not env.kwargs and env.timeout is None and env.on_error == "stop"
    return plain and env.id in SAME_AS_GYMNASIUM and installed("envpool") is not None
