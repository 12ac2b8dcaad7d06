"""Play whole episodes with a policy whose weights and statistics stay as they are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.checking import check_finite
from lightning_ppo.envs.stepper import Stepper
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.policy.actor_critic import ActorCritic, eval_mode
from lightning_ppo.rollout.episodes import check_returns
from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.errors import EnvironmentFault
from lightning_ppo.support.randomness import derive_seeds, own_generators
from lightning_ppo.support.tree import tree_map

MAX_EPISODE_STEPS = 100_000
"""Steps after which an evaluation episode is taken to be endless."""
CHECK_EVERY = 16
"""Steps from one look at what observations show to the next."""


def make_evaluation_env(settings: EnvConfig, num_envs: int, seed: int, rank: int = 0) -> VectorEnv:
    """Return `num_envs` environments to play in; what they draw when they are built follows from seed and rank."""
    with own_generators(derive_seeds(seed, rank, 1, "evaluation process")[0]):
        return make_vector_env(replace(settings, num_envs=num_envs, stagger=False))


@torch.no_grad()
def play(
    policy: ActorCritic,
    env: VectorEnv,
    episodes: int,
    *,
    seeds: list[int],
    deterministic: bool = True,
    seed: int = 0,
    action_mask: str = "auto",
    log_info: Sequence[str] | str = (),
) -> Episodes:
    """Play `episodes` whole episodes and return their undiscounted returns and lengths.

    Each copy of the environment plays a fixed share of them: taking whichever episodes end first would favour short
    ones. The environments are reset first, so the result depends on nothing but the arguments.

    Args:
        policy: Left in the mode (train or eval) it was in.
        env: Vector environment; the rewards counted are those it returns.
        episodes: Number of episodes, at least 1.
        seeds: One seed per copy of the environment.
        deterministic: Play the mode of the action distribution instead of sampling.
        seed: Of the sampling, and of the global generators, from which environments may draw meanwhile.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.
        log_info: Entries of infos whose sums are returned, see `EnvConfig.log_info`.

    Raises:
        ValueError: If `episodes` is less than 1.
        EnvironmentFault: If the environment misbehaves, or an episode does not end within MAX_EPISODE_STEPS.
    """
    if episodes < 1:
        raise ValueError(f"expected at least one episode, got {episodes}")
    num_envs = env.num_envs
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with eval_mode(policy), own_generators(seed):
        stepper = make_stepper(env, action_mask, seeds, on_host=True, log_info=log_info)
        states = policy.initial_states(num_envs)
        sums, counts = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)  # of the episodes in progress
        tally = _Tally(stepper)

        def tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(x)).to(device)

        while quota.any():
            if counts.max(where=quota > 0, initial=0) >= MAX_EPISODE_STEPS:
                raise EnvironmentFault(
                    f"an evaluation episode has not ended after {MAX_EPISODE_STEPS} steps; give the environment a time "
                    "limit, or set evaluation.episodes=0 and evaluation.final_episodes=0"
                )
            actions, states = policy.step(
                tree_map(tensor, stepper.observations),
                states,
                tensor(stepper.starts),
                action_masks=None if stepper.action_masks is None else tensor(stepper.action_masks),
                deterministic=deterministic,
                generator=generator,
            )
            rewards, terminations, truncations = stepper.step(tree_map(lambda x: x.cpu().numpy(), actions))
            check_finite(tree_map(lambda x: x[None], stepper.observations), rewards[None, :0], stepper.num_steps)
            check_finite((), rewards[None], stepper.num_steps - 1)
            if stepper.num_steps % CHECK_EVERY == 0:
                stepper.check_values()
            sums += np.where(stepper.filler, 0.0, rewards)
            counts += ~stepper.filler
            tally.step()
            for index in np.flatnonzero(terminations | truncations).tolist():
                if quota[index] and not stepper.filler[index]:  # else it was broken off when its copy was replaced
                    quota[index] -= 1
                    tally.keep(index, sums[index], counts[index])
                tally.begin(index)
                sums[index] = counts[index] = 0
    played = tally.episodes()
    check_returns(played.returns)
    return played


class _Tally:
    """Keeps what episodes that are over have come to.

    Args:
        stepper: Steps the environments; it has been reset.
    """

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self._infos: Any = None
        self._over: list[tuple[float, float, float]] = []
        self._told: list[np.ndarray] = []

    def step(self) -> None:
        """Take in the infos of the step just made."""
        values = self.stepper.info_values
        if values is None:
            return
        told = ~np.isnan(values) & ~self.stepper.filler
        if self._infos is None:
            self._infos = np.zeros((2, *values.shape))  # sums, and the steps that told them
        self._infos += np.where(told, np.nan_to_num(values), 0.0), told

    def keep(self, index: int, episode_return: float, length: int) -> None:
        """Keep the episode that has just ended in a copy."""
        success = np.nan if self.stepper.successes is None else self.stepper.successes[index]
        self._over.append((episode_return, length, success))
        if self._infos is not None:
            self._told.append(self._infos[:, :, index].copy())

    def begin(self, index: int) -> None:
        """Begin an episode in a copy."""
        if self._infos is not None:
            self._infos[:, :, index] = 0.0

    def episodes(self) -> Episodes:
        """Return all that was kept."""
        returns, lengths, successes = torch.tensor(self._over, dtype=torch.float64).reshape(-1, 3).unbind(1)
        sums, steps = {}, {}
        reader = self.stepper.infos
        for number, name in enumerate(reader.names or () if self._told else ()):
            total, steps[name] = torch.from_numpy(np.array([told[:, number] for told in self._told])).unbind(1)
            known = (steps[name] > 0) & (name not in reader.shared)
            sums[name] = torch.where(known, total, torch.nan)
        return Episodes(returns, lengths.long(), successes, sums, steps)
