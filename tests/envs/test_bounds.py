"""Bounds of actions that stand for none, and numbers too large to be results."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.numpy_acting import NumpyActor
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.rollout.episodes import EpisodeRecorder
from lightning_ppo.support.errors import EnvironmentFault, UnsupportedSpaceError
from tests.kit.envs import Count, make_vector_env

FLOAT32, FLOAT64, FLOAT16 = (float(np.finfo(kind).max) for kind in (np.float32, np.float64, np.float16))


class Far(Count):
    """Its actions have the bounds that were given; the reward is the action."""

    def __init__(self, low: float = -FLOAT32, high: float = FLOAT32, reward: float = 1.0) -> None:
        super().__init__(length=4)
        self.action_space = spaces.Box(low, high, (1,), np.float32)
        self.size = reward

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.size * float(action[0]), *rest


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-FLOAT32, FLOAT32, np.float32),
        (-FLOAT64, FLOAT64, np.float64),
        (-FLOAT16, FLOAT16, np.float16),
        (-FLOAT32, FLOAT32, np.float64),
        (-1e30, np.inf, np.float32),
        (np.finfo(np.float64).tiny, FLOAT64, np.float64),  # as EnvPool has it
    ],
)
def test_bounds_at_the_extremes_of_numbers_are_none(low, high, dtype):
    space = spaces.Box(low, high, (2,), dtype)
    head = make_action_head(space)
    assert not head.bounded and head.identity
    actions = torch.tensor([[-1.5, 2000.0]])
    assert head.to_env(actions).tolist() == [[-1.5, 2000.0]]
    with pytest.raises(UnsupportedSpaceError, match="needs an action space with finite bounds"):
        make_action_head(space, "beta")


def test_a_bound_on_one_side_holds_and_bounds_of_other_dimensions_too():
    space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, FLOAT64]), dtype=np.float64)
    head = make_action_head(space)
    assert head.to_env(torch.tensor([[0.5, -3.0], [3.0, 3.0]])).tolist() == [[1.0, 0.0], [2.0, 3.0]]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_rollouts_and_evaluations_without_bounds_have_results_of_the_size_of_their_actions(backend):
    env = make_vector_env("tests.envs.test_bounds:Far", 2, backend=backend)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    rollout = Collector(env, policy, 8, torch.Generator().manual_seed(0), [0, 1]).collect()
    assert len(rollout.episodes.returns) == 4 and rollout.episodes.returns.abs().max() < 100.0
    played = play(policy, env, 4, seeds=[0, 1], deterministic=False)
    assert played.returns.abs().max() < 100.0
    assert NumpyActor.suits(policy)  # which clips by itself
    env.close()


def test_rewards_beyond_float32_are_named():
    env = make_vector_env("tests.envs.test_bounds:Far", 2, backend="sync", kwargs={"reward": 1e39})
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    collector = Collector(env, policy, 8, torch.Generator().manual_seed(0), [0, 1])
    with pytest.raises(EnvironmentFault, match=r"env 0 returned the reward -?\d.\d+e\+(38|39) at step 1"):
        collector.collect()
    with pytest.raises(EnvironmentFault, match="returned the reward"):
        play(policy, env, 1, seeds=[0, 1], deterministic=False)


def test_returns_beyond_float32_are_no_results():
    rewards, ends = torch.full((4, 1), 1e38, dtype=torch.float64), torch.tensor([[False], [False], [False], [True]])
    with pytest.raises(EnvironmentFault, match=r"an episode has the return 4e\+38"):
        EpisodeRecorder(1).add(rewards, ends, torch.ones(4, 1, dtype=torch.bool))
