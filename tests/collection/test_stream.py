"""The stream: fresh rollouts on demand, reward scaling, advantages, and a state that goes on exactly."""

import contextlib
import copy
import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig, RolloutConfig
from lightning_ppo.settings.networks import PolicyConfig
from tests.kit.collecting import transitions
from tests.kit.envs import Count, make_vector_env, vector
from tests.kit.threads import in_ranks

NEXT_STEP = AutoresetMode.NEXT_STEP
MODES = list(AutoresetMode)
FIELDS = (
    "observations",
    "actions",
    "distribution",
    "log_probs",
    "values",
    "next_values",
    "rewards",
    "terminations",
    "truncations",
    "valid",
    "advantages",
    "returns",
)


class Engine(Count):
    """Cannot be saved."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.engine = object()


class LoudResets(VectorEnv):
    """One counter under NEXT_STEP autoreset, whose resetting steps give a reward of 100."""

    num_envs = 1
    metadata: ClassVar[dict] = {"autoreset_mode": NEXT_STEP}
    single_observation_space = spaces.Box(0.0, 1000.0, (1,), np.float32)
    observation_space = spaces.Box(0.0, 1000.0, (1, 1), np.float32)
    single_action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros((1, 1), np.float32), {}

    def step(self, actions):
        self.t = (self.t + 1) % 5
        reward = np.array([100.0 if self.t == 0 else 1.0])
        return np.full((1, 1), self.t, np.float32), reward, np.array([self.t == 4]), np.zeros(1, np.bool_), {}


def make_policy(env, observations=False, rewards=False, hidden_sizes=()):
    return ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        PolicyConfig(hidden_sizes=list(hidden_sizes)),
        NormalizeConfig(observations=observations, rewards=rewards),
    )


def make_stream(env, policy, num_steps, *, gamma=0.99, gae_lambda=0.95, length=1, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    seeds = [seed + 10 * index for index in range(env.num_envs)]
    collector = Collector(env, policy, num_steps, generator, seeds)
    return RolloutStream(collector, RolloutConfig(num_steps, gamma, gae_lambda), length, **kwargs)


def reloaded(state):
    """Return `state` as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(ours, theirs):
    """Compare two rollouts bit for bit, but for the time they took."""
    for name in FIELDS:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.episodes.returns, theirs.episodes.returns)
    assert torch.equal(ours.episodes.lengths, theirs.episodes.lengths)
    assert ours.policy_version == theirs.policy_version


# items


def test_length_is_exact():
    env = vector([Count])
    stream = make_stream(env, make_policy(env), 2, length=3)
    # also the second time: an epoch has the same number of items
    assert len(stream) == len(list(stream)) == len(list(stream)) == 3


def test_nothing_is_collected_before_it_is_asked_for():
    env = vector([lambda: Count(1000)])
    policy = make_policy(env)
    stream = make_stream(env, policy, 4, length=3)
    items, seen = iter(stream), []
    for version in (5, 6, 7):
        # an item prefetched before the update would carry the old version
        policy.version = version
        assert stream.collector.stepper.num_steps == 4 * len(seen)
        seen.append(next(items))
    assert [r.policy_version for r in seen] == [5, 6, 7]
    # the episode goes on from item to item
    assert torch.cat([r.observations for r in seen]).flatten().tolist() == list(range(12))
    with pytest.raises(StopIteration):
        next(items)
    assert stream.collector.stepper.num_steps == 12


def test_collecting_and_learning_share_one_precision():
    env = make_vector_env("Pendulum-v1", 4)
    policy = make_policy(env, hidden_sizes=(64,))

    def context():
        return torch.autocast("cpu", torch.bfloat16)

    with contextlib.closing(env):
        rollout = make_stream(env, policy, 32, precision=context).next_rollout()
    observations, actions = rollout.observations.flatten(0, 1), rollout.actions.flatten(0, 1)
    with torch.no_grad():
        with context():
            inside = policy.evaluate(transitions(observations, actions))
        outside = policy.evaluate(transitions(observations, actions))
    # ratio exp(new - old) is 1 in the precision of the update, and would not be in another
    assert torch.equal(rollout.log_probs.flatten(), inside.log_probs)
    assert torch.equal(rollout.values.flatten(), inside.values)
    assert not torch.equal(rollout.values.flatten(), outside.values)
    assert rollout.advantages.dtype == torch.float32


# reward scaling


@pytest.mark.parametrize("num_steps", [2, 5, 10])
@pytest.mark.parametrize("end", ["term", "trunc"])
@pytest.mark.parametrize("mode", MODES)
def test_scaler_has_the_statistics_of_discounted_sums(mode, end, num_steps):
    env = vector([lambda: Count(4, end)] * 2, mode)
    policy = make_policy(env, rewards=True)
    stream = make_stream(env, policy, num_steps, gamma=0.5)
    # 20 steps are 4 episodes of 4 steps and a reset, or 5 episodes of 4
    for _ in range(20 // num_steps):
        stream.next_rollout()
    scaler = policy.reward_scaler
    assert scaler.count == 2 * 4 * (4 if mode is NEXT_STEP else 5)
    # 1, 1.5, 1.75, 1.875 in every episode: mean 6.125 / 4, population variance .44921875 / 4
    assert scaler.mean.item() == pytest.approx(1.53125, abs=1e-12)
    assert scaler.variance.item() == pytest.approx(0.1123046875, abs=1e-12)


def test_the_scale_of_rewards_is_one_of_the_returns_of_all_ranks():
    def scaler(rank):
        env = vector([lambda: Count(4 - 2 * rank)], AutoresetMode.SAME_STEP)
        policy = make_policy(env, rewards=True)
        make_stream(env, policy, 4, gamma=0.5).next_rollout()
        return policy.reward_scaler.state_dict()

    # 1, 1.5, 1.75, 1.875 on rank 0, and on rank 1 1, 1.5, 1, 1.5
    sums = torch.tensor([1.0, 1.5, 1.75, 1.875, 1.0, 1.5, 1.0, 1.5], dtype=torch.float64)
    for state in in_ranks(2, scaler):
        expected = {"mean": sums.mean(), "variance": sums.var(correction=0), "count": torch.tensor(8.0).double()}
        torch.testing.assert_close(dict(state), expected)


def test_rewards_of_resetting_steps_count_for_no_episode():
    env = LoudResets()
    rollout = make_stream(env, make_policy(env), 10).next_rollout()
    assert rollout.valid.flatten().tolist() == [1, 1, 1, 1, 0] * 2
    assert rollout.episodes.returns.tolist() == [4.0, 4.0]


def test_rewards_of_resetting_steps_reach_no_statistic():
    env = LoudResets()
    policy = make_policy(env, rewards=True)
    make_stream(env, policy, 10, gamma=0.5).next_rollout()
    # as above: 1, 1.5, 1.75, 1.875 in either episode
    assert policy.reward_scaler.count == 8
    assert policy.reward_scaler.mean.item() == pytest.approx(1.53125, abs=1e-12)


def test_returns_are_scaled_and_rewards_stay_raw():
    env = vector([lambda: Count(4, "term", None)], AutoresetMode.SAME_STEP)
    policy = make_policy(env, rewards=True)
    with torch.no_grad():
        policy.network.critic_output.weight.zero_()
    rollout = make_stream(env, policy, 4, gamma=0.0, normalize=False).next_rollout()
    assert rollout.rewards.flatten().tolist() == [1, 2, 3, 4]
    # gamma 0, V = 0: the discounted sums are the rewards, with variance (1.5^2 + .5^2) x 2 / 4 = 1.25
    expected = torch.tensor([[1.0], [2.0], [3.0], [4.0]]) / 1.25**0.5
    torch.testing.assert_close(rollout.returns, expected)
    torch.testing.assert_close(rollout.advantages, expected)
    assert rollout.episodes.returns.tolist() == [10.0]


def test_without_a_scaler_returns_are_raw():
    env = vector([lambda: Count(4, "term", None)], AutoresetMode.SAME_STEP)
    policy = make_policy(env)
    rollout = make_stream(env, policy, 4, gamma=1.0, gae_lambda=1.0, normalize=False).next_rollout()
    # lambda 1: returns are the sums of the rewards to come
    torch.testing.assert_close(rollout.returns.flatten(), torch.tensor([10.0, 9.0, 7.0, 4.0]))


# advantages


@pytest.mark.parametrize("mode", MODES)
def test_normalised_advantages(mode):
    makers = [lambda length=length: Count(length, "trunc", None) for length in (1, 2, 5, 9)]
    env, raw_env = vector(makers, mode), vector(makers, mode)
    policy = make_policy(env)
    rollout = make_stream(env, policy, 32).next_rollout()
    raw = make_stream(raw_env, policy, 32, normalize=False).next_rollout().advantages
    valid = rollout.advantages[rollout.valid].double()
    assert valid.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert valid.std().item() == pytest.approx(1.0, abs=1e-6)
    assert rollout.valid.all() == (mode is not NEXT_STEP)
    assert (rollout.advantages[~rollout.valid] == 0.0).all()
    # only shifted and scaled, by the statistics of the valid rows
    rows = raw[rollout.valid].double()
    torch.testing.assert_close(valid * rows.std() + rows.mean(), rows, rtol=1e-5, atol=1e-5)
    # the value targets are not touched
    torch.testing.assert_close(rollout.returns, raw + rollout.values)


@pytest.mark.parametrize("mode", MODES)
def test_collecting_does_not_touch_the_observation_normaliser(mode):
    env = vector([lambda: Count(3, "trunc"), lambda: Count(5)], mode)
    policy = make_policy(env, observations=True, rewards=True)
    policy.inputs.normalizers[""].update(torch.tensor([[1.0], [5.0]]))
    before = {name: x.clone() for name, x in policy.inputs.normalizers[""].named_buffers()}
    assert policy.training
    make_stream(env, policy, 16).next_rollout()
    after = dict(policy.inputs.normalizers[""].named_buffers())
    assert before.keys() == after.keys() == {"mean", "variance", "count", "scale", "shift", "offset"}
    for name, x in after.items():
        assert torch.equal(x, before[name]), name


# state


@pytest.mark.parametrize(
    ("env_id", "num_steps"),
    [
        # native, with resets pending at some of the ends of rollouts; a random policy falls after about 20 steps
        ("CartPole-v1", 25),
        # truncated after 200 steps, in the second rollout
        ("Pendulum-v1", 120),
    ],
)
@pytest.mark.parametrize("rollouts", [1, 2])
def test_state_round_trip(env_id, num_steps, rollouts):
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(contextlib.closing(make_vector_env(env_id, 8))) for _ in range(2)]
        policy = make_policy(envs[0], observations=True, rewards=True, hidden_sizes=(8,))
        stream = make_stream(envs[0], policy, num_steps)
        for _ in range(rollouts):
            stream.next_rollout()
        state, saved_policy = stream.get_state(), copy.deepcopy(policy)
        expected = [stream.next_rollout() for _ in range(2)]
        resumed = make_stream(envs[1], saved_policy, num_steps, seed=99)
        # serialised only now: the saved state must not have moved with the stream
        resumed.set_state(reloaded(state))
        assert sum(len(r.episodes.returns) for r in expected) > 0
        for rollout in expected:
            assert_equal(resumed.next_rollout(), rollout)
    for name, x in saved_policy.reward_scaler.state_dict().items():
        assert torch.equal(x, policy.reward_scaler.state_dict()[name]), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_steps", [2, 3, 4])
def test_state_round_trip_with_ends_on_the_edge(mode, num_steps):
    def make_env():
        return vector([lambda: Count(2, "trunc"), lambda: Count(3, reward=None)], mode)

    env = make_env()
    policy = make_policy(env, rewards=True)
    stream = make_stream(env, policy, num_steps)
    stream.next_rollout()
    resumed = make_stream(make_env(), copy.deepcopy(policy), num_steps, seed=99)
    resumed.set_state(reloaded(stream.get_state()))
    for _ in range(4):
        assert_equal(resumed.next_rollout(), stream.next_rollout())


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_where_the_state_cannot_be_had_episodes_start_anew(backend):
    def make_env():
        return stack.enter_context(
            contextlib.closing(
                make_vector_env("tests.collection.test_stream:Engine", 2, backend=backend, kwargs={"length": 5})
            )
        )

    with contextlib.ExitStack() as stack:
        env = make_env()
        policy = make_policy(env, rewards=True)
        with torch.no_grad():
            # actions are the noise's alone, so that they show whether sampling goes on
            policy.network.actor_output.weight.zero_()
        stream = make_stream(env, policy, 8, gamma=0.5)
        stream.next_rollout()
        state, saved_policy = reloaded(stream.get_state()), copy.deepcopy(policy)
        assert state["collector"]["stepper"]["env"] is None
        assert state["collector"]["stepper"]["reason"]
        expected = stream.next_rollout()
        resumed = make_stream(make_env(), saved_policy, 8, gamma=0.5, seed=99)
        resumed.set_state(state)
        rollout = resumed.next_rollout()
    # the second rollout of the first stream is in the midst of an episode
    assert expected.observations[:, 0, 0].tolist() == [3, 4, 0, 1, 2, 3, 4, 0]
    assert rollout.observations[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert torch.equal(rollout.actions, expected.actions)
    assert rollout.episodes.lengths.tolist() == [5, 5]
    assert rollout.episodes.returns.tolist() == [5.0, 5.0]
    # the sums start anew too; twice 1, 1.5, 1.75, 1.875, 1.9375 and 1, 1.5, 1.75 in either rollout: mean 12.3125 / 8
    assert saved_policy.reward_scaler.mean.item() == pytest.approx(12.3125 / 8, abs=1e-12)
