"""The episodes that evaluations play, and the first observations that predictions are made for."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lightning_ppo.collection.changes import Changes
from lightning_ppo.collection.environments import Environments
from lightning_ppo.envs.reaching import make_changes
from lightning_ppo.envs.state import return_to_built
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic, MaskedObservations
from lightning_ppo.rollout.shapes import Episodes, Observations
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.support.distributed import rank, world_size
from lightning_ppo.support.randomness import derive_seeds
from lightning_ppo.support.tree import tree_map


class OneItemLoader:
    """A loader of one item, made when it is asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.make()


class Evaluations:
    """Plays in the evaluation environments of this rank.

    Args:
        environments: Those of this rank.
        env: Which environment.
        settings: How it is played.
        changes: What is changed in evaluation environments.
    """

    def __init__(
        self, environments: Environments, env: EnvConfig, settings: EvaluationConfig, changes: Changes
    ) -> None:
        self.environments, self.env, self.settings, self.changes = environments, env, settings, changes

    def play(self, policy: ActorCritic, episodes: int, purpose: str) -> Episodes:
        """Play this rank's share of `episodes`, seeded for `evaluation` or `test`."""
        share = episodes // world_size() + (rank() < episodes % world_size())
        if share == 0:
            return Episodes(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
        env = self.environments.evaluation
        if env is not self.environments.given_evaluation:
            return_to_built(env)  # what outlasts resets would make an evaluation depend on those before it
            make_changes(env, self.changes.evaluation)
        seeds = derive_seeds(self.environments.seed(), rank() * env.num_envs, env.num_envs, purpose)
        return play(
            policy,
            env,
            share,
            seeds=seeds,
            deterministic=self.settings.deterministic,
            seed=seeds[0],
            action_mask=self.env.action_mask,
            log_info=self.env.log_info,
        )

    def first_observations(self) -> Observations | MaskedObservations:
        """Return the first observations of all copies, with masks if there are any."""
        env = self.environments.evaluation
        seeds = derive_seeds(self.environments.seed(), rank() * env.num_envs, env.num_envs, "evaluation")
        stepper = make_stepper(env, self.env.action_mask, seeds, on_host=True)
        observations = tree_map(lambda x: torch.from_numpy(np.array(x)), stepper.observations)
        if stepper.action_masks is None:
            return observations
        return MaskedObservations(observations, torch.from_numpy(stepper.action_masks))
