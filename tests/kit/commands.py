"""Settings of a run of a moment, and what it writes."""

import csv
from pathlib import Path

SMALL = [
    "env.num_envs=4",
    "rollout.num_steps=16",
    "update.epochs=2",
    "update.minibatch_size=16",
    "rollouts_per_epoch=2",
    "evaluation.episodes=2",
    "evaluation.final_episodes=3",
    "evaluation.num_envs=2",
]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
