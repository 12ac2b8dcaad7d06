"""Evaluation: whole episodes, exactly as many as asked for, and nothing else changes."""

import contextlib
import random

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import EnvironmentFault
from tests.kit.envs import Bad, Count, make_vector_env, vector

MODES = list(AutoresetMode)

# a wrong share of episodes would be waited for without end
pytestmark = pytest.mark.timeout(20)


class Even(Count):
    """Reward 1 where action 1 is taken."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action), *rest


def make_policy(env):
    torch.manual_seed(0)
    return ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        PolicyConfig(hidden_sizes=[8]),
        NormalizeConfig(observations=True, rewards=True),
    )


def play_some(env, episodes, policy=None, **kwargs):
    policy = make_policy(env) if policy is None else policy
    return play(policy, env, episodes, seeds=list(range(env.num_envs)), **kwargs)


def counters(lengths, mode=AutoresetMode.SAME_STEP, **kwargs):
    return vector([lambda length=length: Count(length, **kwargs) for length in lengths], mode)


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (7, 1), (5, 3), (2, 4), (6, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_number_of_episodes_is_exact(mode, episodes, num_envs):
    played = play_some(counters([4] * num_envs, mode, reward=2.0), episodes)
    # 4 steps of reward 2; a reset step of NEXT_STEP counts for nothing
    assert played.lengths.tolist() == [4] * episodes
    assert played.returns.tolist() == [8.0] * episodes


@pytest.mark.parametrize("end", ["term", "trunc"])
@pytest.mark.parametrize("mode", MODES)
def test_short_episodes_are_not_favoured(mode, end):
    played = play_some(counters([1, 9], mode, end=end, reward=None), 4)
    # two of each, though nine short ones fit into a long one; returns 1 and 1 + 2 + ... + 9 = 45
    assert sorted(played.lengths.tolist()) == [1, 1, 9, 9]
    assert dict(zip(played.lengths.tolist(), played.returns.tolist(), strict=True)) == {1: 1.0, 9: 45.0}


@pytest.mark.parametrize(("episodes", "expected"), [(3, [2, 2, 5]), (4, [2, 2, 5, 5]), (5, [2, 2, 2, 5, 5])])
@pytest.mark.parametrize("mode", MODES)
def test_each_copy_plays_its_share(mode, episodes, expected):
    assert sorted(play_some(counters([2, 5], mode), episodes).lengths.tolist()) == expected


@pytest.mark.parametrize("mode", MODES)
def test_episodes_of_one_step(mode):
    played = play_some(counters([1, 1], mode, reward=-1.5), 6)
    assert played.lengths.tolist() == [1] * 6
    assert played.returns.tolist() == [-1.5] * 6


def test_episodes_of_pendulum():
    with contextlib.closing(make_vector_env("Pendulum-v1", 2)) as env:
        played = play_some(env, 2)
    assert played.lengths.tolist() == [200, 200]
    # the reward lies in [-16.28, 0] and is no scaled one
    assert (played.returns < -100.0).all()
    assert (played.returns > -16.28 * 200).all()


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes_is_an_error(episodes):
    with pytest.raises(ValueError, match=f"at least one episode, got {episodes}"):
        play_some(counters([2]), episodes)


# actions


@pytest.mark.parametrize("action", [0, 1])
def test_deterministic_is_the_mode(action):
    env = vector([lambda: Even(20)], AutoresetMode.SAME_STEP)
    policy = make_policy(env)
    with torch.no_grad():
        policy.network.actor_output.weight.zero_()
        # probabilities .55 and .45: the mode is always `action`, a sample is not
        policy.network.actor_output.bias.copy_(torch.tensor([0.0, 0.2] if action else [0.2, 0.0]))
    assert play_some(env, 3, policy).returns.tolist() == [20.0 * action] * 3
    sampled = play_some(env, 3, policy, deterministic=False).returns
    # three sums of 20 coins: all heads or all tails have probability 2e-16
    assert (sampled > 0.0).all()
    assert (sampled < 20.0).all()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_repeats_exactly(env_id, deterministic):
    with contextlib.closing(make_vector_env(env_id, 2)) as env:
        policy = make_policy(env)
        first = play_some(env, 3, policy, deterministic=deterministic)
        # in between the environments go somewhere else
        play(policy, env, 1, seeds=[100, 101], deterministic=False, seed=9)
        again = play_some(env, 3, policy, deterministic=deterministic)
    assert torch.equal(first.returns, again.returns)
    assert torch.equal(first.lengths, again.lengths)


def test_seeds_matter():
    with contextlib.closing(make_vector_env("Pendulum-v1", 1)) as env:
        policy = make_policy(env)
        played = [
            play(policy, env, 1, seeds=[env_seed], deterministic=False, seed=noise_seed).returns.item()
            for env_seed, noise_seed in ((0, 0), (0, 1), (1, 0))
        ]
    assert len(set(played)) == 3


# nothing else changes


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_policy_and_random_state_stay_as_they_are(training, deterministic):
    with contextlib.closing(make_vector_env("CartPole-v1", 2)) as env:
        policy = make_policy(env)
        policy.inputs.normalizers[""].update(torch.randn(10, 4))
        policy.train(training)
        before = {name: x.clone() for name, x in (*policy.named_parameters(), *policy.named_buffers())}
        numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
        played = play(policy, env, 4, seeds=[0, 1], deterministic=deterministic)
    assert len(played.returns) == 4
    after = dict((*policy.named_parameters(), *policy.named_buffers()))
    assert all(torch.equal(x, before[name]) for name, x in after.items())
    assert all(module.training == training for module in policy.modules())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    for ours, theirs in zip(np.random.get_state(), numpy_state, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_frozen_submodule_stays_frozen():
    env = counters([3])
    policy = make_policy(env).train()
    policy.inputs.normalizers[""].eval()
    play_some(env, 1, policy)
    assert policy.training
    assert policy.network.actor_trunk.training
    assert not policy.inputs.normalizers[""].training


def test_mode_is_restored_after_a_fault():
    env = vector([lambda: Bad("raises")], AutoresetMode.SAME_STEP)
    policy = make_policy(env).train()
    with pytest.raises(EnvironmentFault, match="the wheel came off"):
        play_some(env, 1, policy)
    assert policy.training


@pytest.mark.parametrize("kind", ["raises", "nan_observation", "nan_reward", "wrong_shape"])
def test_fault_names_environment_and_step(kind):
    env = make_vector_env("tests.kit.envs:Bad", 1, kwargs={"kind": kind})
    with contextlib.closing(env), pytest.raises(EnvironmentFault) as caught:
        play_some(env, 1)
    assert "env 0 " in str(caught.value)
    assert " 3" in str(caught.value)


def test_an_endless_episode_is_an_error_that_names_the_remedy(monkeypatch):
    monkeypatch.setattr("lightning_ppo.evaluation.play.MAX_EPISODE_STEPS", 50)
    env = vector([lambda: Count(10), lambda: Count(10**9)])
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    with pytest.raises(EnvironmentFault, match=r"not ended after 50 steps.*evaluation.episodes=0"):
        play(policy, env, 2, seeds=[0, 1])
    assert play(policy, env, 1, seeds=[0, 1]).lengths.tolist() == [10]  # the endless copy has no share
