"""Check what environments returned: numbers that are not finite, values outside their spaces."""

from typing import Any

import numpy as np

from lightning_ppo.envs.declared import Declared
from lightning_ppo.support.errors import EnvironmentFault
from lightning_ppo.support.tree import tree_leaves, tree_map

_LARGEST = float(np.finfo(np.float32).max)
"""Of a reward: what is learnt from and reported is float32."""


def check_finite(observations: Any, rewards: np.ndarray, first_step: int, first_env: int = 0) -> None:
    """Raise EnvironmentFault if a NaN, an infinity or a reward beyond float32 is among what environments returned.

    Args:
        observations: (K, N, ...), the first of them seen after `first_step` steps.
        rewards: (T, N), the first of them given by the step after that.
        first_step: Steps made before.
        first_env: Index of the first environment.
    """
    named = [*(("observation", leaf, 0) for leaf in tree_leaves(observations)), ("reward", rewards, 1)]
    for name, values, offset in named:
        if not np.issubdtype(values.dtype, np.floating):
            continue
        fine = np.abs(values) <= _LARGEST if name == "reward" else np.isfinite(values)
        if fine.all():
            continue
        bad = tuple(np.argwhere(~fine)[0])
        raise EnvironmentFault(
            f"env {first_env + int(bad[1])} returned the {name} {values[bad]} "
            f"at step {first_step + int(bad[0]) + offset} of this process; the weights have not been touched"
        )


def check_rollout(
    observations: Any,
    boundary: Any,
    boundary_rows: np.ndarray,
    rewards: np.ndarray,
    first_step: int,
    valid: np.ndarray,
    declared: Declared,
) -> None:
    """Raise EnvironmentFault if a NaN, an infinity or a value that means nothing is in a rollout.

    Args:
        observations: (T, N, ...).
        boundary: (K, ...), observations that no row of the rollout shows, those after the last step first.
        boundary_rows: (K,), the row t x N + n that each of them follows.
        rewards: (T, N).
        first_step: Steps made before.
        valid: (T, N) bool, which rows are transitions.
        declared: Checks the values of observations.
    """
    num_steps, num_envs = rewards.shape
    check_finite(observations, rewards, first_step)
    check_finite(tree_map(lambda x: x[None, :num_envs], boundary), rewards[:0], first_step + num_steps)
    for k, row in enumerate(boundary_rows[num_envs:].tolist(), start=num_envs):
        final = tree_map(lambda x, k=k: x[None, None, k], boundary)
        check_finite(final, rewards[:0], first_step + row // num_envs + 1, row % num_envs)
    declared.check(observations, lambda step, env: (first_step + step, env))
    rows = np.arange(len(boundary_rows))[valid.reshape(-1)[boundary_rows]]  # a copy that failed shows nothing

    def place(k: int, _: int) -> tuple[int, int]:
        row = int(boundary_rows[rows[k]])
        return first_step + row // num_envs + 1, row % num_envs

    declared.check(tree_map(lambda x: x[rows, None], boundary), place)
