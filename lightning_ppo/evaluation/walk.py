"""A walk through an environment with an untrained policy, and numbers of what it met."""

import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from lightning_ppo.envs.checking import check_finite
from lightning_ppo.envs.infos import AUTO, FINAL, SUCCESS, InfoReader, numbers_in
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.tree import tree_leaves, tree_map


class Listener(InfoReader):
    """Notes the names of all numbers in infos."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(AUTO, num_envs)
        self.found: dict[str, None] = {}
        self.tells_success = False

    def values(self, infos: Mapping[str, Any], ended: Any) -> None:
        """Note the names of all numbers."""
        for part in (infos, infos.get(FINAL) or {}):
            self.found |= dict.fromkeys(numbers_in(part, self.num_envs))
            self.tells_success |= SUCCESS in part


class Walk:
    """Steps copies of an environment with a policy, and keeps numbers of what it met.

    Args:
        env: The environment.
        policy: Acts, with noise that follows from the seed.
        settings: Of the environment.
        seed: Of environments and noise.
    """

    def __init__(self, env: VectorEnv, policy: ActorCritic, settings: EnvConfig, seed: int) -> None:
        self.env, self.policy = env, policy
        self.infos = Listener(env.num_envs)
        started = time.perf_counter()
        seeds = [seed + 1000 * index for index in range(env.num_envs)]
        self.stepper = make_stepper(env, settings.action_mask, seeds, on_host=True, log_info=AUTO)
        self.stepper.infos = self.infos
        self.reset_seconds = time.perf_counter() - started
        self.generator = torch.Generator().manual_seed(seed)
        self.first = tree_map(np.array, self.stepper.observations)
        self.digests: list[int] = [_digest(self.first)]
        self.rewards: list[np.ndarray] = []
        self.lengths: list[int] = []
        self.terminations = self.truncations = 0
        self.extremes: list[list[np.ndarray]] = [[leaf, leaf] for leaf in map(_flat, tree_leaves(self.first))]
        self._steps, self._seconds = np.zeros(env.num_envs, np.int64), 0.0

    @property
    def step_seconds(self) -> float:
        """Of one copy."""
        return self._seconds / max(1, len(self.rewards) * self.env.num_envs)

    @torch.no_grad()
    def go(self, steps: int) -> None:
        """Make some steps.

        Raises:
            EnvironmentFault: If the environment returns what it must not.
        """
        stepper = self.stepper
        for _ in range(steps):
            masks = None if stepper.action_masks is None else torch.from_numpy(np.array(stepper.action_masks))
            seen, starts = tree_map(lambda x: torch.from_numpy(np.array(x)), (stepper.observations, stepper.starts))
            sampled: dict[str, Any] = {"deterministic": False, "generator": self.generator}
            actions, _ = self.policy.step(seen, None, starts, action_masks=masks, **sampled)
            started = time.perf_counter()
            rewards, terminations, truncations = stepper.step(tree_map(lambda x: x.numpy(), actions))
            self._seconds += time.perf_counter() - started
            check_finite(tree_map(lambda x: x[None], stepper.observations), rewards[None], stepper.num_steps - 1)
            stepper.check_values()
            self._note(rewards, terminations, truncations)

    def _note(self, rewards: np.ndarray, terminations: np.ndarray, truncations: np.ndarray) -> None:
        stepper, counts = self.stepper, ~self.stepper.filler
        self.rewards.append(np.where(counts, rewards, np.nan))
        self._steps += counts
        ended = (terminations | truncations) & counts
        self.lengths += self._steps[ended].tolist()
        self._steps[terminations | truncations] = 0
        self.terminations += int((terminations & counts).sum())
        self.truncations += int((truncations & ~terminations & counts).sum())
        self.digests.append(_digest((stepper.observations, rewards, terminations, truncations)))
        for leaf, found in zip(map(_flat, tree_leaves(stepper.observations)), self.extremes, strict=True):
            found[0], found[1] = np.minimum(found[0], leaf), np.maximum(found[1], leaf)


def _flat(leaf: Any) -> np.ndarray:
    """Return the values of all copies as (features,) extremes can be kept of."""
    return np.asarray(leaf, np.float64).reshape(len(leaf), -1)


def _digest(tree: Any) -> int:
    total = 0
    for leaf in tree_leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), total)
    return total
