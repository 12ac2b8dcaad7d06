"""Report where the time of an iteration goes, in microseconds per vector step and per minibatch.

    python benchmarks/where_time_goes.py                     print the tables
    python benchmarks/where_time_goes.py docs/speed.md       put them between the markers of a page

Functions are timed where they are called, in training runs of lightning_ppo through `train.py`; the timers themselves
cost about half a microsecond each.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pytorch_lightning as pl
import torch

from benchmarks.learning import cpu_name
from benchmarks.peers.stopwatch import Race
from benchmarks.speed import WARM_UP, WORKLOADS
from lightning_ppo.collection import acting, collector, stream
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.run.training import train
from lightning_ppo.settings.loading import load
from lightning_ppo.speed.flat import FlatAdam
from lightning_ppo.update import ppo as module

BEGIN, END = "<!-- profile: begin -->", "<!-- profile: end -->"
TIMED = {
    "iteration": (stream.RolloutStream, "next_rollout"),
    "collect": (collector.Collector, "collect"),
    "environment": (VectorStepper, "step"),
    "acting": (acting.NumpyActor, "__call__"),
    "scoring": (collector.Collector, "_score"),
    "training_step": (module.PPO, "training_step"),
    "loss": (module.PPO, "minibatch_loss"),
    "gradients": (module.PPO, "_backward"),
    "backward": (torch.Tensor, "backward"),
    "clipping": (module.PPO, "on_before_optimizer_step"),
    "adam": (FlatAdam, "bare_step"),
    "finish": (module, "finish_iteration"),
}
"""Methods by what their time is called."""


WITHIN_GRADIENTS = ("loss", "backward")
"""What is one graph where it is compiled."""


class Timers:
    """Adds up the inclusive time of methods.

    Args:
        names: Those of `TIMED` that are timed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack = contextlib.ExitStack()

    def reset(self) -> None:
        """Forget what was measured."""
        self.seconds.clear()

    def __enter__(self) -> "Timers":
        for name in self.names:
            owner, method = TIMED[name]
            original = getattr(owner, method)
            setattr(owner, method, self._timed(name, original))
            self._stack.callback(setattr, owner, method, original)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


class Laps(pl.Callback):
    """Notes when each iteration ends, and starts the timers anew where the warm-up does."""

    def __init__(self, timers: Timers) -> None:
        self.timers = timers
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Note the end of an iteration."""
        self.ends.append(time.perf_counter())
        if len(self.ends) == WARM_UP:
            self.timers.reset()


def profile(task: Race, compiled: bool) -> dict[str, float]:
    """Return seconds per name over the iterations after the warm-up; `wall` is all of it."""
    overrides = [
        *(f"env.id={task.env_id}", f"env.num_envs={task.num_envs}", f"rollout.num_steps={task.num_steps}"),
        *(
            f"update.epochs={task.epochs}",
            f"update.minibatch_size={task.minibatch_size}",
            "optimizer.learning_rate=3e-4",
        ),
        *(f"normalize.observations={task.normalize}", f"normalize.rewards={task.normalize}", f"compile={compiled}"),
        *("evaluation.episodes=0", "evaluation.final_episodes=0", "trainer.enable_checkpointing=false"),
        *("trainer.enable_progress_bar=false", f"total_env_steps={task.total_env_steps}"),
    ]
    names = [name for name in TIMED if not (compiled and name in WITHIN_GRADIENTS)]
    with Timers(names) as timers, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("error", "compile: ")  # a profile of the eager update under another name
        laps = Laps(timers)
        with contextlib.redirect_stdout(io.StringIO()):
            train(load([], [*overrides, f"run_dir={folder}/run"]), [laps])
        return {**timers.seconds, "wall": laps.ends[-1] - laps.ends[WARM_UP - 1]}


def parts(task: Race, seconds: dict[str, float], compiled: bool) -> list[tuple[str, float, str, int]]:
    """Return the parts of training after the warm-up: name, seconds, what it is counted per, how many of those."""
    iterations = task.iterations - WARM_UP
    vector_step = ("vector step", iterations * task.num_steps)
    minibatch = ("minibatch", iterations * task.epochs * task.num_envs * task.num_steps // task.minibatch_size)
    iteration = ("iteration", iterations)
    of = defaultdict(float, seconds)
    gradients = [("forward and backward, compiled", of["gradients"], *minibatch)]
    if not compiled:
        gradients = [
            ("gathering the minibatch", of["gradients"] - of["loss"] - of["backward"], *minibatch),
            ("forward", of["loss"], *minibatch),
            ("backward", of["backward"], *minibatch),
        ]
    bookkeeping = of["collect"] - of["environment"] - of["acting"] - of["scoring"]
    loop = of["training_step"] - of["gradients"] - of["clipping"] - of["adam"] - of["finish"]
    return [
        ("environment", of["environment"], *vector_step),
        ("acting: the action", of["acting"], *vector_step),
        ("acting: bookkeeping", bookkeeping, *vector_step),
        ("log-probabilities and values of the rollout", of["scoring"], *iteration),
        ("advantages", of["iteration"] - of["collect"], *iteration),
        *gradients,
        ("clipping", of["clipping"], *minibatch),
        ("Adam", of["adam"], *minibatch),
        ("loop, shuffle, statistics", loop, *minibatch),
        ("end of the iteration: checks, KL, statistics", of["finish"], *iteration),
        ("Trainer and loggers", of["wall"] - of["iteration"] - of["training_step"], *iteration),
    ]


def table(workload: str, task: Race) -> list[str]:
    """Return the profile of a workload, eager and compiled, as lines of Markdown."""
    lines = [
        f"### {workload}",
        "",
        "| mode | part | share of the time | microseconds | per |",
        "|---|---|---|---|---|",
    ]
    for compiled in (False, True):
        seconds = profile(task, compiled)
        mode = "compiled" if compiled else "eager"
        for name, spent, unit, count in parts(task, seconds, compiled):
            each, share = spent / count * 1e6, spent / seconds["wall"]
            lines.append(f"| {mode} | {name} | {share:.1%} | {each:,.1f} | {unit} |")
    return [*lines, ""]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--workloads", nargs="+", type=int, choices=range(len(WORKLOADS)), default=[1, 2, 3])
    options = parser.parse_args()
    lines = []
    for number in options.workloads:
        lines += table(*list(WORKLOADS.items())[number])
    lines.append(
        f"{cpu_name()}, {torch.get_num_threads()} thread, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}."
    )
    print("\n".join(lines))
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        options.page.write_text("\n".join([before + BEGIN, *lines, END + after]))


if __name__ == "__main__":
    main()
