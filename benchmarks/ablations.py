"""Measure the value of each universal default: one setting changed at a time, three seeds each, 1M environment steps.

    pip install -c constraints.txt -e ".[mujoco,benchmark]"
    python benchmarks/ablations.py run --workers 2
    python benchmarks/ablations.py run --changes no-reward-scaling shared-network --seeds 1
    python benchmarks/ablations.py report

`run` continues where it was stopped: a finished run is a row in benchmarks/results/ablation-CHANGE.csv, a killed one
continues from its last checkpoint. The changes are compared with the experiment `universal` of learning.py, which ran
with the same command except for the change. `report` writes docs/defaults.md from the rows that exist.

A run's score is the mean return of its last 100 training episodes, on the scale on which uniformly random actions have
0 and the mean of `universal` on the task has 1; a change's score is the interquartile mean over tasks and seeds.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import learning

PAGE = learning.ROOT / "docs" / "defaults.md"
BASELINE = "universal"
TASKS = ("halfcheetah", "hopper", "walker2d", "swimmer")
"""Names of config files."""
SEEDS = (1, 2, 3)
ALWAYS = ("compile=true", "evaluation.episodes=0", "evaluation.final_episodes=10")


class TimeLimitsTerminate(gym.Wrapper):
    """Episodes that the time limit cuts off have ended, so nothing is bootstrapped from their last observation."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and never cut off."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


class PlainNetworks(nn.Module):
    """The universal networks, two of 64x64 tanh units, with torch's own initialisation."""

    def __init__(self, observation_space: gym.spaces.Box, num_outputs: int) -> None:
        super().__init__()
        inputs = int(np.prod(observation_space.shape))
        self.policy, self.value = (
            nn.Sequential(
                *(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)),
            )
            for outputs in (num_outputs, 1)
        )

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (B, num_outputs) and values (B,)."""
        return self.policy(inputs), self.value(inputs).squeeze(-1)


class Change(NamedTuple):
    """One departure from the defaults."""

    title: str
    settings: tuple[str, ...]


CHANGES = {
    "gamma-0.99": Change("discount 0.99", ("rollout.gamma=0.99",)),
    "no-cooldown": Change("no cooldown of the learning rate", ("optimizer.learning_rate.cooldown=0.0",)),
    "no-std-decay": Change("no decay of the standard deviation", ("update.std_decay=0.0",)),
    "no-observation-normalisation": Change("no observation normalisation", ("normalize.observations=false",)),
    "no-reward-scaling": Change("no reward scaling", ("normalize.rewards=false",)),
    "time-limits-terminate": Change(
        "time limits as terminations", ("env.wrappers=[benchmarks.ablations.TimeLimitsTerminate]",)
    ),
    "plain-initialisation": Change(
        "torch's own initialisation", ("policy.network=benchmarks.ablations.PlainNetworks",)
    ),
    "shared-network": Change("one network for actor and critic", ("policy.shared_trunk=true",)),
    "value-clipping": Change("value clipping, 0.2", ("update.value_clip_range=0.2",)),
    "no-gradient-clipping": Change("no bound on the gradient norm", ("update.max_grad_norm=null",)),
    "constant-rate": Change("learning rate 3e-4", ("optimizer.learning_rate=3e-4",)),
    "linear-rate": Change(
        "learning rate 3e-4 falling to 0", ("optimizer.learning_rate={kind: linear, start: 3e-4, end: 0.0}",)
    ),
    "recomputed-advantages": Change("advantages recomputed in each epoch", ("update.recompute_advantages=true",)),
    "in-step": Change("copies in step", ("env.stagger=false",)),
    "log-std-0": Change("log standard deviation 0 at the start", ("policy.log_std_init=0.0",)),
}
"""In the order in which they are run."""


def report(page: Path) -> None:
    """Write scores and returns between the markers of the page."""
    experiments = [BASELINE, *(f"ablation-{name}" for name in CHANGES)]
    table = learning.load_results(["random", *experiments])
    env_ids = sorted(env for env in table if any(table[env].get(experiment) for experiment in experiments[1:]))
    lines = [
        f"| change | {' | '.join(env_id.removesuffix('-v5') for env_id in env_ids)} | seeds | score | 95 % interval |",
        "|---" * (len(env_ids) + 4) + "|",
    ]
    for experiment in experiments:
        rows = [table[env_id].get(experiment, []) for env_id in env_ids]
        found = learning.normalized_scores(
            {env_id: table[env_id] for env_id in env_ids}, experiment, "random", BASELINE
        )
        score = interval = seeds = ""
        if found and len(found) == len(env_ids):
            common = min(map(len, found.values()))
            mean, low, high = learning.aggregate({task: values[:common] for task, values in found.items()})
            score, seeds = f"{mean:.2f}", str(common)
            interval = f"{low:.2f} to {high:.2f}" if common > 1 else ""
        title = "none" if experiment == BASELINE else CHANGES[experiment.removeprefix("ablation-")].title
        returns = " | ".join(learning.spread(task) for task in rows)
        lines.append(f"| {title} | {returns} | {seeds} | {score} | {interval} |")
    learning.write_between_markers(page, lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not done yet")
    run.add_argument("settings", nargs="*", help="key=value overrides of all runs, for a trial")
    run.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    run.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of config files")
    run.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    run.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    commands.add_parser("report", help="write the table into the page").add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.command == "report":
        report(options.page)
        return
    runs = []
    for seed in options.seeds:
        for name in options.changes:
            settings = [*CHANGES[name].settings, *ALWAYS, *options.settings]
            runs += [(f"ablation-{name}", [f"configs/{task}.yaml"], None, seed, settings) for task in options.tasks]
    learning.run_all(runs, options.workers)


if __name__ == "__main__":
    main()
