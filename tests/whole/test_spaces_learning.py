"""PPO learns with every kind of action and observation: each test fails within seconds if one of its wires is cut."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from tests.kit.rich_envs import Weigh
from tests.kit.spaces import ARM, BOXES, GRID, MIXED
from tests.kit.training import make_trainer

pytestmark = pytest.mark.learning


class Repeat(gymnasium.Env):
    """Shows a random action, which is to be repeated; 20 steps.

    The reward is a mean over the numbers of the action: 1 for a discrete one that is right; for a continuous one 1 less
    the distance in units of half the range, at least 0.
    """

    def __init__(self, action_space: Space, legal: int = 0) -> None:
        self.action_space = self.observation_space = action_space
        self.legal, self.t = legal, 0

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        self.target = self.action_space.sample()
        if not self.legal:
            return self.target, {}
        order = self.np_random.permutation(self.action_space.n)
        self.mask = np.isin(np.arange(self.action_space.n), [self.target, *order[: self.legal - 1]])
        return self.target, {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        self.t = 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.legal or self.mask[action], "an illegal action"
        self.t += 1
        reward = float(np.mean(scores(self.action_space, action, self.target)))
        observation, info = self._shown()
        return observation, reward, False, self.t >= 20, info


def scores(space: Space, action: Any, target: Any) -> list[float]:
    """How well each number of an action meets its target, from 0 to 1."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        children = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [score for key, child in children for score in scores(child, action[key], target[key])]
    if isinstance(space, spaces.Box):
        distance = np.abs(action - target) / ((space.high - space.low) / 2.0)
        return np.maximum(0.0, 1.0 - distance).reshape(-1).tolist()
    return np.reshape(np.asarray(action) == target, -1).astype(float).tolist()


def trained(space: Space, iterations: int, legal: int = 0, **policy: Any) -> ActorCritic:
    pl.seed_everything(1, verbose=False)
    env = SyncVectorEnv([lambda: Repeat(space, legal)] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    data = RolloutDataModule(env, num_steps=32, gamma=0.0, rollouts_per_epoch=iterations, seed=1)
    model = PPO(
        data.observation_space,
        data.action_space,
        update={"epochs": 6, "minibatch_size": 64},
        optimizer={"learning_rate": 5e-3},
        policy={"hidden_sizes": [32], **policy},
    )
    make_trainer().fit(model, data)
    return model.policy


def score(policy: ActorCritic, space: Space, legal: int = 0) -> float:
    """Mean reward of a step, as the policy plays it."""
    env = SyncVectorEnv([lambda: Repeat(space, legal)] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    return play(policy, env, 8, seeds=list(range(50, 58))).returns.mean().item() / 20.0


@pytest.mark.parametrize(
    ("space", "least"),
    [
        pytest.param(spaces.Discrete(4, start=3), 0.99, marks=pytest.mark.representative),
        *((GRID, 0.95), (spaces.MultiBinary((2, 2)), 0.99)),
    ],
    ids=["discrete", "multi-discrete", "multi-binary"],
)
def test_discrete_actions(space: Space, least: float) -> None:
    # at random: 1 / 4, (1 / 2 + 1 / 3 + 1 / 4 + 1) / 4 = .52, 1 / 2
    assert score(trained(space, 20), space) >= least


@pytest.mark.parametrize("distribution", BOXES)
def test_continuous_actions(distribution: str) -> None:
    # the middle of the range gets 1 / 2
    assert score(trained(ARM, 20, distribution=distribution, log_std_init=-0.5), ARM) >= 0.85


@pytest.mark.parametrize("distribution", ["gaussian", "beta"])
def test_dict_observations_and_mixed_actions(distribution: str) -> None:
    # the middle of four ranges and random choices among 3, 2, 2, 2 and 3: (4 / 2 + 1 / 3 + 3 / 2 + 1 / 3) / 9 = .46
    assert score(trained(MIXED, 30, distribution=distribution, log_std_init=-0.5), MIXED) >= 0.85


def test_a_masked_task_is_learnt_without_one_illegal_action() -> None:
    space = spaces.Discrete(20)
    # the environment fails if an illegal action is taken; of four legal ones a random one is right in 1 of 4
    assert score(trained(space, 20, legal=4), space, legal=4) >= 0.95


def test_a_critic_learns_from_what_it_alone_sees() -> None:
    pl.seed_everything(1, verbose=False)
    env = SyncVectorEnv([Weigh] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    data = RolloutDataModule(env, num_steps=32, rollouts_per_epoch=20, seed=1)
    model = PPO(
        data.observation_space,
        data.action_space,
        update={"epochs": 6, "minibatch_size": 64},
        optimizer={"learning_rate": 5e-3},
        policy={"hidden_sizes": [32], "critic_observation_keys": ["weight"]},
        normalize={"rewards": False},
    )
    make_trainer().fit(model, data)
    weights = torch.linspace(-1.0, 1.0, 9).unsqueeze(1)
    observations = {"nothing": torch.zeros(9, 1), "weight": weights}
    torch.testing.assert_close(model.policy.value(observations), weights[:, 0], rtol=0, atol=0.1)
    outputs = model.policy.distribution(observations)
    assert (outputs == outputs[0]).all()
