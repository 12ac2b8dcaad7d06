"""Returns that are reported are those of the innermost environment; wrappers with statistics are named."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TransformReward
from gymnasium.wrappers import vector as vector_wrappers

from lightning_ppo import RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs import get_env_state, set_env_state
from lightning_ppo.envs.scores import innermost_score, notices_of
from lightning_ppo.envs.torch_envs import TorchCartPole
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import as_section
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.envs import Count, make_vector_env

COUNT = "tests.kit.envs:Count"  # episodes of 4 steps with reward 1


class Tenth(gymnasium.Wrapper):
    """A user's own: a tenth of the reward."""

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, reward / 10, *rest


class Twice(gymnasium.Wrapper):
    """Repeats actions, steps once while it resets, and reads an attribute of what it wraps."""

    def reset(self, **kwargs):
        self.env.reset(**kwargs)
        return self.env.step(0)[0], {}

    def step(self, action):
        total = 0.0
        for _ in range(2):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class Moving(gymnasium.ObservationWrapper):
    """A user's own running moments."""

    def __init__(self, env):
        super().__init__(env)
        self._count, self._mean, self._var = 0, 0.0, 1.0

    def observation(self, observation):
        return observation


class Fixed(Moving):
    """Shifts by what is known beforehand."""

    def __init__(self, env):
        super(Moving, self).__init__(env)
        self.mean, self.std = 1.0, 2.0


class Spoilt(gymnasium.RewardWrapper):
    """Its rewards are not finite."""

    def reward(self, reward):
        return float("nan")


class TenthOfAll(VectorWrapper):
    """A user's own of a vector environment, in place."""

    def step(self, actions):
        observations, rewards, *rest = self.env.step(actions)
        rewards *= 0.1
        return observations, rewards, *rest


def wrapped_count():
    """Name an environment whose wrapper comes with it."""
    return NormalizeReward(Count())


def train(env, num_steps=12):
    torch.manual_seed(0)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    return policy, Collector(env, policy, num_steps, torch.Generator().manual_seed(0), [1, 2]).collect()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("env_id", "wrapper", "said"),
    [
        (COUNT, "gymnasium.wrappers.NormalizeReward", ["set normalize.rewards", "change rewards (NormalizeReward)"]),
        (COUNT, "tests.envs.test_scores.Tenth", ["change rewards (Tenth): these are learnt from"]),
        (
            COUNT,
            {"class_path": "gymnasium.wrappers.ClipReward", "init_args": {"max_reward": 0.5}},
            ["change rewards (ClipReward)"],
        ),
        ("tests.envs.test_scores:wrapped_count", None, ["set normalize.rewards", "change rewards (NormalizeReward)"]),
    ],
)
def test_returns_are_those_of_the_innermost_environment_and_rewards_those_of_the_outermost(
    env_id, wrapper, said, backend, caplog
):
    wrappers = [] if wrapper is None else [wrapper]
    env = make_vector_env(env_id, 2, backend=backend, wrappers=wrappers)
    policy, rollout = train(env)
    assert rollout.episodes.returns.tolist() == [4.0] * 6
    assert (rollout.rewards[1:] - 1.0).abs().min() > 0.01
    assert play(policy, env, 4, seeds=[1, 2]).returns.tolist() == [4.0] * 4
    lines = warnings_of(caplog)
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))
    assert all(line.startswith("env 0 has ") for line in lines)
    env.close()


def test_who_says_so_has_the_returns_of_what_is_learnt_from(caplog):
    env = make_vector_env(COUNT, 2, backend="sync", wrappers=["tests.envs.test_scores.Tenth"], scores="outermost")
    policy, rollout = train(env)
    assert rollout.episodes.returns.tolist() == pytest.approx([0.4] * 6)
    assert play(policy, env, 2, seeds=[1, 2]).returns.tolist() == pytest.approx([0.4] * 2)
    assert warnings_of(caplog) == []
    with pytest.raises(ConfigError, match=r"env.scores: expected innermost or outermost, got 'raw'"):
        as_section(EnvConfig, {"scores": "raw"}, "env")


def test_wrappers_that_only_repeat_steps_change_nothing_and_are_not_named(caplog):
    env = make_vector_env(COUNT, 2, backend="sync", wrappers=["tests.envs.test_scores.Twice"])
    _, rollout = train(env)
    assert rollout.episodes.returns[0] == 3.0  # of 4, one was made by the reset
    assert torch.equal(rollout.rewards[:2, 0], torch.tensor([2.0, 1.0]))
    assert warnings_of(caplog) == []


def test_environments_without_such_wrappers_are_as_they_were():
    env = gymnasium.make("CartPole-v1")
    assert innermost_score(env) is env


@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [
        (Moving, "normalize.observations or normalize.rewards"),
        (NormalizeObservation, "set normalize.observations"),
        (NormalizeReward, "set normalize.rewards"),
        (Fixed, None),
        (Tenth, None),
        (gymnasium.wrappers.RecordEpisodeStatistics, None),
    ],
)
def test_wrappers_with_running_moments_are_known(wrapper, expected):
    found = notices_of(gymnasium.wrappers.TimeLimit(wrapper(Count()), 5))
    assert (found == []) if expected is None else (len(found) == 1 and expected in found[0])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("wrapper", [TenthOfAll, vector_wrappers.NormalizeReward])
def test_wrappers_of_vector_environments_built_by_hand(wrapper, mode, caplog):
    built = wrapper(SyncVectorEnv([Count] * 2, autoreset_mode=mode))
    data = RolloutDataModule(built, evaluation_env=wrapper(SyncVectorEnv([Count] * 2, autoreset_mode=mode)))
    policy, rollout = train(data.env)
    assert set(rollout.episodes.returns.tolist()) == {4.0} and len(rollout.episodes.returns) >= 4
    assert (rollout.rewards[rollout.valid][2:] - 1.0).abs().min() > 0.01
    assert play(policy, data.environments.evaluation, 2, seeds=[1, 2]).returns.tolist() == [4.0, 4.0]
    assert sum(f"change rewards ({wrapper.__name__})" in line for line in warnings_of(caplog)) == 1
    assert sum("set normalize.rewards" in line for line in warnings_of(caplog)) == (wrapper is not TenthOfAll)


def test_copies_of_a_vector_environment_built_by_hand():
    copies = [lambda: TransformReward(Count(), lambda r: -3.0 * r)] * 2
    data = RolloutDataModule(SyncVectorEnv(copies, autoreset_mode=AutoresetMode.SAME_STEP))
    _, rollout = train(data.env)
    assert rollout.episodes.returns.tolist() == [4.0] * 6 and set(rollout.rewards.flatten().tolist()) == {-3.0}
    data = RolloutDataModule(SyncVectorEnv(copies, autoreset_mode=AutoresetMode.SAME_STEP), scores="outermost")
    assert train(data.env)[1].episodes.returns.tolist() == [-12.0] * 6


def test_copies_in_processes_built_by_hand_are_named(caplog):
    built = AsyncVectorEnv([lambda: NormalizeReward(Count())] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    RolloutDataModule(built)
    lines = warnings_of(caplog)
    assert any("set normalize.rewards" in line for line in lines)
    assert any("returns are of these; name the environment" in line for line in lines)
    assert sum("before anyone can check it; name the environment" in line for line in lines) == 1
    built.close()


def test_environments_on_a_device_too():
    env = RolloutDataModule(TenthOfAll(TorchCartPole(2, max_episode_steps=5)), stagger=False).env
    policy, rollout = train(env)
    assert set(rollout.episodes.returns.tolist()) <= {5.0} and len(rollout.episodes.returns) == 4
    assert rollout.rewards.flatten().tolist() == pytest.approx([0.1] * 24)
    assert play(policy, env, 2, seeds=[1]).returns.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_such_copies_resume_exactly(backend):
    wrappers = ["tests.envs.test_scores.Twice", "tests.envs.test_scores.Tenth"]
    env, other = (make_vector_env("CartPole-v1", 2, backend=backend, wrappers=wrappers) for _ in range(2))
    env.reset(seed=[1, 2])
    other.reset(seed=[3, 4])
    actions = np.array([0, 1])
    for _ in range(3):
        env.step(actions)
    state, reason = get_env_state(env)
    assert state is not None, reason
    set_env_state(other, state)
    for _ in range(30):
        (seen, rewards, *_), (others_seen, others_rewards, *_) = env.step(actions), other.step(actions)
        assert np.array_equal(seen, others_seen) and np.array_equal(rewards, others_rewards)
    env.close()
    other.close()


def test_a_copy_that_is_replaced_goes_on_telling(caplog):
    env = make_vector_env(
        "tests.kit.envs:Touchy",
        2,
        backend="sync",
        kwargs={"at": 3, "length": 5},
        wrappers=["tests.envs.test_scores.Tenth"],
        max_restarts=50,
    )
    _, rollout = train(env, 64)
    assert "it was replaced" in caplog.text
    assert rollout.episodes.returns.numel() > 0 and set(rollout.episodes.returns.tolist()) == {5.0}


def test_what_is_learnt_from_is_checked_though_it_is_not_the_score():
    env = make_vector_env(COUNT, 2, backend="sync", wrappers=["tests.envs.test_scores.Spoilt"])
    with pytest.raises(EnvironmentFault, match="env 0 returned the reward nan at step 1"):
        train(env)
