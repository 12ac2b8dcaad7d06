"""Collecting: rows, ends, bootstraps and episode records are right whatever the vector environment's ways."""

import contextlib
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_ppo.policy.scoring
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.speed import switch
from lightning_ppo.support.errors import EnvironmentFault
from lightning_ppo.support.randomness import derive_seeds
from tests.kit.collecting import collector, linear_policy, stream, transitions
from tests.kit.envs import Bad, Count, Loop4, make_vector_env, vector

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
MODES = [NEXT_STEP, SAME_STEP, DISABLED]


class Goal(Count):
    """Reward 1 on the last step of an episode only."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(terminated or truncated), terminated, truncated, info


class Scripted(Count):
    """Step t (from 1) gives t + 10 x action; episodes end by turns with a termination and a truncation."""

    def __init__(self, length, end):
        super().__init__(length, end, None)
        self.ends = itertools.cycle([end, "trunc" if end == "term" else "term"])

    def reset(self, **kwargs):
        self.end = next(self.ends)
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 10.0 * float(action), *rest


class Echo(Count):
    """Takes a Box action and gives its first component as the reward."""

    def __init__(self, low=-1.0, high=1.0):
        super().__init__(length=10)
        self.action_space = spaces.Box(low, high, (1,), np.float32)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action[0]), *rest


class InPlace(Count):
    """Returns the same array at every step and writes the next observation into it."""

    def __init__(self, length=8, end="trunc"):
        super().__init__(length, end)
        self.array = np.zeros(1, dtype=np.float32)

    def _observation(self):
        self.array[0] = self.t
        return self.array


class InPlaceVector(VectorEnv):
    """Two counters of the given length that are truncated, with all arrays of their own reused at every step."""

    num_envs = 2
    single_observation_space = spaces.Box(0.0, 1000.0, (1,), np.float32)
    observation_space = spaces.Box(0.0, 1000.0, (2, 1), np.float32)
    single_action_space = spaces.Discrete(2)

    def __init__(self, mode, length=4):
        self.metadata = {"autoreset_mode": mode}
        self.mode, self.length = mode, length
        self.counts, self.final = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
        self.rewards, self.terminations, self.truncations = np.zeros(2), np.zeros(2, np.bool_), np.zeros(2, np.bool_)

    def reset(self, *, seed=None, options=None):
        for array in (self.counts, self.rewards, self.terminations, self.truncations):
            array[(options or {}).get("reset_mask", slice(None))] = 0
        return self.counts, {}

    def step(self, actions):
        resetting = self.truncations.copy() & (self.mode is NEXT_STEP)
        self.counts += 1.0
        self.counts[resetting] = 0.0
        self.final[:] = -1.0
        self.rewards[:] = ~resetting
        self.truncations[:] = self.counts[:, 0] >= self.length
        infos = {}
        if self.mode is SAME_STEP and self.truncations.any():
            self.final[:] = self.counts
            self.counts[self.truncations] = 0.0
            infos["final_obs"] = self.final
        return self.counts, self.rewards, self.terminations, self.truncations, infos


class Bytes(Count):
    """Counts in images of 2 x 2 bytes."""

    def __init__(self, length=3, end="trunc"):
        super().__init__(length, end)
        self.observation_space = spaces.Box(0, 255, (2, 2), np.uint8)

    def _observation(self):
        return np.full((2, 2), 100 * self.t % 256, dtype=np.uint8)


class BadCopy(Bad):
    """Only the second copy misbehaves."""

    made = itertools.count()

    def __init__(self, kind, at=3):
        super().__init__(kind, at if next(self.made) == 1 else 10**9)


class BadFinal(Count):
    """The last observation of an episode is NaN."""

    def _observation(self):
        return np.array([self.t if self.t < self.length else np.nan], dtype=np.float32)


class Infinite(gymnasium.Env):
    """Observes plus and minus infinity at once."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        return np.array([np.inf, -np.inf], dtype=np.float32), 0.0, False, False, {}


class BadReset(Count):
    """Cannot be reset, and says so at length."""

    def reset(self, **kwargs):
        raise RuntimeError("the gate\nis locked")


def counters(lengths, mode, end="term", reward=None):
    return vector([lambda length=length: Count(length, end, reward) for length in lengths], mode)


def column(x):
    """Return the only column of (T, 1) or (T, 1, 1) as a list."""
    return x.reshape(-1).tolist()


def fault(run):
    """Return the message of the fault that `run` raises."""
    with pytest.raises(EnvironmentFault) as caught:
        run()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# advantages from end to end


@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("end", ["term", "trunc"])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
@pytest.mark.parametrize("gamma", [1.0, 0.99])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_critic(value, gamma, gae_lambda, end, episodes):
    env = vector([lambda: Goal(64, end)] * 2, SAME_STEP)
    rollout = stream(env, linear_policy(env, 0.0, value), 64 * episodes, gamma, gae_lambda).next_rollout()
    # delta_t = gamma V - V, and on the last step 1 + gamma V (only if truncated) - V; A_t = sum (gamma lambda)^k delta
    deltas = np.full(64, gamma * value - value)
    deltas[63] = 1.0 - value + (gamma * value if end == "trunc" else 0.0)
    weights = (gamma * gae_lambda) ** np.arange(64)
    expected = torch.tensor([weights[: 64 - t] @ deltas[t:] for t in range(64)]).float().repeat(episodes)
    for index in range(2):
        torch.testing.assert_close(rollout.advantages[:, index], expected, rtol=0.0, atol=2e-5)
        torch.testing.assert_close(rollout.returns[:, index], expected + value, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_timeouts_of_an_endless_task_are_no_ends(mode):
    # V = 1 / (1 - .98) = 50 solves V = 1 + .98 V, so that no step is better than expected
    env = vector([lambda: Loop4(8)] * 2, mode)
    rollout = stream(env, linear_policy(env, 0.0, 50.0), 20, 0.98, 0.95).next_rollout()
    assert rollout.truncations.sum() == 4
    assert rollout.advantages[rollout.valid].abs().max() < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_terminations_of_the_same_task_cost_its_value(mode):
    # delta = 1 - 50 = -49 where the episode ends, 1 + .98 x 50 - 50 = 0 elsewhere
    env = vector([lambda: Loop4(8, "term")] * 2, mode)
    rollout = stream(env, linear_policy(env, 0.0, 50.0), 20, 0.98, 0.0).next_rollout()
    expected = torch.where(rollout.terminations, -49.0, 0.0)[rollout.valid]
    assert (expected == -49.0).sum() == 4
    torch.testing.assert_close(rollout.advantages[rollout.valid], expected, rtol=0.0, atol=1e-4)


# autoreset modes


@pytest.mark.parametrize("end", ["term", "trunc"])
def test_next_step_autoreset(end):
    env = counters((2, 3, 3), NEXT_STEP, end)
    collecting = collector(env, linear_policy(env, 0.5), 4)
    rollout = collecting.collect()
    assert rollout.observations[..., 0].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 3, 3]]
    assert collecting.stepper.observations[:, 0].tolist() == [1, 0, 0]
    assert rollout.rewards.tolist() == [[1, 1, 1], [2, 2, 2], [0, 3, 3], [1, 0, 0]]
    # environment 0 ends at step 2 and is reset by step 3; the others end at step 3 and are reset by step 4
    assert rollout.valid.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0]]
    ends = rollout.terminations if end == "term" else rollout.truncations
    assert ends.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]
    # V = obs / 2 of the next observation, which is the final one where an episode ended
    assert rollout.next_values[:2].tolist() == [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]
    assert rollout.next_values[2, 1:].tolist() == [1.5, 1.5]
    assert rollout.next_values[3, 0] == 0.5
    assert rollout.episodes.returns.tolist() == [3.0, 6.0, 6.0]
    assert rollout.episodes.lengths.tolist() == [2, 3, 3]


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_final_observation_is_bootstrapped_from(mode):
    env = counters((2, 3, 3), mode, "trunc")
    rollout = collector(env, linear_policy(env, 0.5), 4).collect()
    assert rollout.valid.all()
    assert rollout.observations[..., 0].tolist() == [[0, 0, 0], [1, 1, 1], [0, 2, 2], [1, 0, 0]]
    assert rollout.rewards.tolist() == [[1, 1, 1], [2, 2, 2], [1, 3, 3], [2, 1, 1]]
    assert rollout.truncations.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 0, 0]]
    # V = obs / 2; environment 0 ends after observing 2 and the others after observing 3, not after the reset's 0
    assert rollout.next_values.tolist() == [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.5, 1.5, 1.5], [1.0, 0.5, 0.5]]


def test_disabled_autoreset_resets_only_what_ended(monkeypatch):
    env = counters((2, 3, 3), DISABLED)
    collecting, masks, reset = collector(env, linear_policy(env), 6), [], env.reset

    def spy(*, seed=None, options):
        masks.append(options["reset_mask"].tolist())
        return reset(seed=seed, options=options)

    monkeypatch.setattr(env, "reset", spy)
    collecting.collect()
    # lengths 2, 3, 3: ends at steps 2, 4, 6 and at steps 3, 6
    assert masks == [[True, False, False], [False, True, True], [True, False, False], [True, True, True]]


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("end", ["term", "trunc"])
@pytest.mark.parametrize("mode", MODES)
def test_episodes_of_one_step(mode, end, num_steps):
    env = counters((1, 1), mode, end, reward=3.0)
    source = stream(env, linear_policy(env, 0.5, 0.25), num_steps, 0.5, 0.9)
    valid_rows = 0
    for _ in range(3):
        rollout = source.next_rollout()
        ends = rollout.terminations if end == "term" else rollout.truncations
        torch.testing.assert_close(ends, rollout.valid)
        # term: return = reward = 3; trunc: 3 + gamma V(1) = 3 + .5 x (.5 + .25) = 3.375
        assert rollout.returns[rollout.valid].unique().tolist() in ([3.0 if end == "term" else 3.375], [])
        assert rollout.episodes.returns.tolist() == [3.0] * int(rollout.valid.sum())
        assert rollout.episodes.lengths.tolist() == [1] * int(rollout.valid.sum())
        valid_rows += int(rollout.valid.sum())
    # with NEXT_STEP every second row is a reset
    steps = 3 * num_steps
    assert valid_rows == 2 * ((steps + 1) // 2 if mode is NEXT_STEP else steps)


@pytest.mark.parametrize("mode", MODES)
def test_episode_that_ends_on_the_edge_of_a_rollout(mode):
    env = counters((4,), mode, "trunc")
    collecting = collector(env, linear_policy(env, 1.0), 4)
    first, second = collecting.collect(), collecting.collect()
    assert column(first.observations) == [0, 1, 2, 3]
    # V = obs: the value after the last step is that of the final observation 4
    assert column(first.next_values) == [1, 2, 3, 4]
    assert column(first.truncations) == [0, 0, 0, 1]
    assert first.episodes.lengths.tolist() == [4]
    if mode is NEXT_STEP:
        assert column(second.observations) == [4, 0, 1, 2]
        assert column(second.valid) == [0, 1, 1, 1]
        assert column(second.rewards) == [0, 1, 2, 3]
        assert second.episodes.lengths.tolist() == []
    else:
        assert column(second.observations) == [0, 1, 2, 3]
        assert column(second.next_values) == [1, 2, 3, 4]
        assert second.valid.all()
        assert second.episodes.lengths.tolist() == [4]


def scripted_episode(length, end, value, gamma, gae_lambda):
    """Return the rows of an episode of `Scripted`, as the collector and GAE must give them."""
    rows, advantage = [], 0.0
    for t in reversed(range(length)):
        last = t == length - 1
        action = int(t >= 2)
        reward = t + 1 + 10.0 * action
        # delta = r + gamma V(s') - V(s), without V(s') after a termination
        delta = reward + gamma * (0.0 if last and end == "term" else value * (t + 1)) - value * t
        advantage = delta + (0.0 if last else gamma * gae_lambda * advantage)
        terminated, truncated = last and end == "term", last and end == "trunc"
        rows.append((t, action, reward, terminated, truncated, 0.0 if terminated else value * (t + 1), advantage))
    return rows[::-1]


BACKENDS = [("sync", {}), ("async", {}), ("async", {"shared_memory": False})]


@pytest.mark.parametrize(("kind", "options"), BACKENDS, ids=["sync", "async", "async-unshared"])
@pytest.mark.parametrize("mode", MODES)
def test_modes_and_backends_give_the_same_data(mode, kind, options):
    lengths, ends = (1, 2, 3, 7), ("term", "trunc", "term", "trunc")
    makers = [lambda a=length, b=end: Scripted(a, b) for length, end in zip(lengths, ends, strict=True)]
    with contextlib.closing(vector(makers, mode, kind, **options)) as env:
        policy = linear_policy(env, 0.25)
        with torch.no_grad():
            # logits 0 and 1000 x - 1500: action 1 from observation 2 on, whatever the noise
            policy.network.actor_output.weight.copy_(torch.tensor([[0.0], [1000.0]]))
            policy.network.actor_output.bias.copy_(torch.tensor([0.0, -1500.0]))
        rollout = stream(env, policy, 40, 0.5, 0.5).next_rollout()
    fields = (
        rollout.observations[..., 0],
        rollout.actions,
        rollout.rewards,
        rollout.terminations,
        rollout.truncations,
        # after a termination nothing is bootstrapped from
        rollout.next_values.masked_fill(rollout.terminations, 0.0),
        rollout.advantages,
    )
    rows = torch.stack([x.double() for x in fields], -1)
    # a reset row after every episode but the one that the rollout cuts
    resets = [40 // (length + 1) if mode is NEXT_STEP else 0 for length in lengths]
    assert (~rollout.valid).sum(0).tolist() == resets
    for index, (length, first_end) in enumerate(zip(lengths, ends, strict=True)):
        other_end = {"term": "trunc", "trunc": "term"}[first_end]
        seen = rows[:, index][rollout.valid[:, index]]
        script = [
            row
            for episode in range(len(seen) // length)
            for row in scripted_episode(length, (first_end, other_end)[episode % 2], 0.25, 0.5, 0.5)
        ]
        # all numbers are multiples of a power of 2, so that float32 holds them exactly
        torch.testing.assert_close(seen[: len(script)], torch.tensor(script).double(), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_next_values_are_of_the_final_observation_also_where_it_is_terminal(mode):
    env = counters((3,), mode, "term")
    # V = obs, and the episode terminates after observing 3
    assert column(collector(env, linear_policy(env), 3).collect().next_values) == [1, 2, 3]


@pytest.mark.parametrize("mode", MODES)
def test_returns_and_lengths_of_episodes(mode):
    env = counters((3, 3), mode, "trunc", reward=1.0)
    collecting = collector(env, linear_policy(env), 5)
    episodes = [collecting.collect().episodes for _ in range(8)]
    # 40 steps: 13 episodes of 3, or 10 of 3 and a reset step; 2 environments
    expected = 2 * (10 if mode is NEXT_STEP else 13)
    assert torch.cat([e.returns for e in episodes]).tolist() == [3.0] * expected
    assert torch.cat([e.lengths for e in episodes]).tolist() == [3] * expected


def test_episodes_are_in_order_of_time():
    env = counters((5, 2, 3), SAME_STEP)
    episodes = collector(env, linear_policy(env), 6).collect().episodes
    # environment 1 ends at 2, 4, 6, environment 2 at 3, 6, environment 0 at 5; returns 1 + 2 + ... + length
    assert episodes.lengths.tolist() == [2, 3, 2, 5, 2, 3]
    assert episodes.returns.tolist() == [3.0, 6.0, 3.0, 15.0, 3.0, 6.0]


def test_episodes_of_cartpole_equal_independent_bookkeeping():
    with contextlib.closing(make_vector_env("CartPole-v1", 4, backend="sync")) as env:
        collecting = collector(env, linear_policy(env), 50)
        rollouts = [collecting.collect() for _ in range(5)]
    actions = torch.cat([r.actions for r in rollouts])
    expected = []
    # 4 x 250 = 1,000 steps
    for index in range(4):
        single, total, length = gymnasium.make("CartPole-v1"), 0.0, 0
        single.reset(seed=index)
        for t, action in enumerate(actions[:, index].tolist()):
            _, reward, terminated, truncated, _ = single.step(action)
            total, length = total + reward, length + 1
            if terminated or truncated:
                expected.append((t, index, total, length))
                total, length = 0.0, 0
                single.reset()
        single.close()
    expected.sort()
    assert len(expected) > 20
    assert torch.cat([r.episodes.returns for r in rollouts]).tolist() == [e[2] for e in expected]
    assert torch.cat([r.episodes.lengths for r in rollouts]).tolist() == [e[3] for e in expected]


# what the critic sees, and whose memory it is


@pytest.mark.parametrize("mode", MODES)
def test_bootstrap_sees_the_normalised_final_observation(mode):
    env = counters((7,), mode, "trunc")
    policy = linear_policy(env, 1.5, normalize=True)
    # mean (1 + 5) / 2 = 3, variance 2^2 = 4
    policy.inputs.normalizers[""].update(torch.tensor([[1.0], [5.0]]))
    rollout = collector(env, policy, 7).collect()
    # V(t) = 1.5 (t - 3) / 2; the final observation 7 is worth 1.5 x 2 = 3, the reset's 0 would be -2.25
    expected = 0.75 * (torch.arange(8.0)[:, None] - 3.0)
    assert rollout.truncations[6]
    torch.testing.assert_close(rollout.values, expected[:7])
    torch.testing.assert_close(rollout.next_values, expected[1:])


@pytest.mark.parametrize("mode", MODES)
def test_statistics_count_every_observation_once_the_final_ones_too(mode, monkeypatch):
    # episodes of 1, 2, 3 and 5 steps in rollouts of 5: they end within, at the edge, and all at once
    env = counters((1, 2, 3, 5), mode, "trunc")
    policy = linear_policy(env, normalize=True)
    collecting, counted = collector(env, policy, 5), []
    normalizer = policy.inputs.normalizers[""]
    monkeypatch.setattr(normalizer, "update", lambda samples, reduce: counted.extend(samples.flatten().tolist()))
    expected = []
    for _ in range(4):
        rollout = collecting.collect()
        policy.update_statistics(rollout, lambda x: x)
        expected += rollout.observations[rollout.valid].flatten().tolist()
        # an episode of L steps shows 0 to L
        expected += rollout.episodes.lengths.tolist()
    assert sorted(counted) == sorted(expected) and 5.0 in counted


def test_what_only_counts_as_an_end_for_learning_shows_no_final_observation():
    class Lesson(SyncVectorEnv):
        def step(self, actions):
            *step, infos = super().step(actions)
            infos |= {"learn_rewards": step[1], "learn_terminations": step[2] | (step[0][:, 0] == 2.0)}
            return *step, infos

    env = Lesson([lambda: Count(4, "term")], autoreset_mode=SAME_STEP)
    rollout = collector(env, linear_policy(env), 6).collect()
    assert column(rollout.terminations) == [0, 1, 0, 1, 0, 1]
    # the last step is the last row: whether the game goes on is not known there
    assert sorted(rollout.final_observations().flatten().tolist()) == [2.0, 4.0]


def test_what_to_learn_from_may_stand_in_arrays_that_are_reused():
    class Lesson(InPlaceVector):
        learnt = np.zeros(2), np.zeros(2, np.bool_)

        def step(self, actions):
            *step, infos = super().step(actions)
            self.learnt[0][:] = 10.0 * self.counts[:, 0]
            self.learnt[1][:] = self.counts[:, 0] == 2.0
            return *step, infos | {"learn_rewards": self.learnt[0], "learn_terminations": self.learnt[1]}

    env = Lesson(SAME_STEP)
    rollout = collector(env, linear_policy(env), 6).collect()
    assert rollout.rewards[:, 0].tolist() == [10, 20, 30, 0, 10, 20]
    assert rollout.terminations[:, 1].tolist() == [0, 1, 0, 0, 0, 1]
    assert rollout.episodes.returns.tolist() == [4.0, 4.0]


@pytest.mark.parametrize(("name", "found"), [("rewards", r"\(1,\)"), ("truncations", r"\(2, 1\)")])
def test_results_of_another_shape_are_named(name, found):
    class Misshapen(InPlaceVector):
        def step(self, actions):
            observations, *results, infos = super().step(actions)
            index = ("rewards", "terminations", "truncations").index(name)
            results[index] = results[index][:1] if name == "rewards" else results[index][:, None]
            return observations, *results, infos

    env = Misshapen(SAME_STEP)
    with pytest.raises(EnvironmentFault, match=rf"returned {name} of shape {found} .* at step 1, expected \(2,\)"):
        collector(env, linear_policy(env), 6).collect()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_environment_that_reuses_its_array(backend):
    with contextlib.closing(make_vector_env("tests.collection.test_collector:InPlace", 1, backend=backend)) as env:
        rollout = collector(env, linear_policy(env), 8).collect()
    assert column(rollout.observations) == [0, 1, 2, 3, 4, 5, 6, 7]
    # V = obs; the episode is truncated after 8 steps
    assert column(rollout.truncations) == [0, 0, 0, 0, 0, 0, 0, 1]
    assert column(rollout.next_values) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("mode", MODES)
def test_vector_environment_that_reuses_its_arrays(mode):
    env = InPlaceVector(mode)
    collecting = collector(env, linear_policy(env), 6)
    first, second = collecting.collect(), collecting.collect()
    observations = torch.cat((first.observations, second.observations))[:, 1, 0].tolist()
    valid = torch.cat((first.valid, second.valid))[:, 1]
    truncations = torch.cat((first.truncations, second.truncations))[:, 1].tolist()
    next_values = torch.cat((first.next_values, second.next_values))[:, 1]
    if mode is NEXT_STEP:
        assert observations == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
        assert (~valid).nonzero()[:, 0].tolist() == [4, 9]
        assert truncations == [0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
        assert next_values[valid].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    else:
        assert observations == [0, 1, 2, 3] * 3
        assert valid.all()
        assert truncations == [0, 0, 0, 1] * 3
        assert next_values.tolist() == [1, 2, 3, 4] * 3
    # two environments with 3, or under NEXT_STEP 2, episodes of 4 steps
    assert torch.cat((first.episodes.returns, second.episodes.returns)).tolist() == [4.0] * (4 + 2 * valid.all())


@pytest.mark.parametrize("mode", MODES)
def test_bytes_stay_bytes(mode):
    env = vector([Bytes], mode, copy=False)
    rollout = collector(env, linear_policy(env, 0.25), 3).collect()
    assert rollout.observations.dtype == torch.uint8
    assert rollout.observations[:, 0].tolist() == [[[x, x], [x, x]] for x in (0, 100, 200)]
    # V = (4 x pixel) / 4; the final image holds 300 - 256 = 44
    assert column(rollout.values) == [0, 100, 200]
    assert column(rollout.next_values) == [100, 200, 44]


def test_float64_observations_are_stored_as_the_policy_sees_them():
    class Fine(Count):
        def __init__(self):
            super().__init__(length=2, end="trunc")
            self.observation_space = spaces.Box(0.0, 1000.0, (1,), np.float64)

        def _observation(self):
            return np.array([self.t + 0.1])

    env = vector([Fine], SAME_STEP)
    rollout = collector(env, linear_policy(env), 3).collect()
    assert rollout.observations.dtype == torch.float32
    torch.testing.assert_close(rollout.observations.flatten(), torch.tensor([0.1, 1.1, 0.1]))
    torch.testing.assert_close(rollout.next_values.flatten(), torch.tensor([1.1, 2.1, 1.1]))


# environments that misbehave


@pytest.mark.parametrize("num_steps", [2, 3, 8])
@pytest.mark.parametrize("kind", ["raises", "nan_observation", "nan_reward", "wrong_shape"])
@pytest.mark.parametrize("index", [0, 1])
def test_fault_names_environment_and_step(monkeypatch, index, kind, num_steps):
    monkeypatch.setattr(BadCopy, "made", itertools.count())
    env_id = "tests.collection.test_collector:BadCopy" if index else "tests.kit.envs:Bad"
    with contextlib.closing(make_vector_env(env_id, 2, kwargs={"kind": kind, "at": 3})) as env:
        collecting = collector(env, linear_policy(env), num_steps)

        def collect():
            for _ in range(3):
                collecting.collect()

        message = fault(collect)
    assert f"env {index} " in message
    # the third step of its life, wherever the edge of a rollout was
    assert " 3" in message
    cause = {"raises": "ZeroDivisionError: the wheel came off", "wrong_shape": "(3,)"}.get(kind, "nan")
    assert cause in message


def test_fault_in_another_process():
    env = make_vector_env("tests.kit.envs:Bad", 2, backend="async", kwargs={"kind": "raises"})
    message = fault(collector(env, linear_policy(env), 8).collect)
    assert "raised in step after 3 steps: ZeroDivisionError: the wheel came off" in message
    assert message.startswith("env 0 ")
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def test_fault_of_a_given_vector_environment():
    env = vector([lambda: Bad("raises")] * 2, SAME_STEP)
    message = fault(collector(env, linear_policy(env), 8).collect)
    # two steps were made before the one that raised
    assert "after 2 steps: ZeroDivisionError: the wheel came off" in message


def test_fault_in_reset():
    with contextlib.closing(make_vector_env("tests.collection.test_collector:BadReset", 1)) as env:
        message = fault(lambda: collector(env, linear_policy(env), 1))
    assert "env 0 raised in reset" in message
    assert "RuntimeError: the gate is locked" in message


def test_fault_of_infinities_that_cancel():
    env = vector([Infinite], SAME_STEP)
    assert "env 0 returned the observation" in fault(collector(env, linear_policy(env), 4).collect)


@pytest.mark.parametrize("mode", MODES)
def test_fault_of_the_final_observation(mode):
    # after 3 steps the truncated episode's last observation is NaN, and so would be the value it is cut off with
    env = vector([lambda: Count(100), lambda: BadFinal(3, "trunc")], mode)
    message = fault(collector(env, linear_policy(env), 8).collect)
    assert "env 1 returned the observation nan at step 3 " in message


def test_same_step_without_final_observation():
    env = counters((9, 3), SAME_STEP)
    env._add_info = lambda infos, info, index: infos
    message = fault(collector(env, linear_policy(env), 8).collect)
    assert "SAME_STEP" in message
    assert "final_obs" in message
    assert "step 3 although env 1 ended" in message


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_fault_is_not_mixed_up_with_rows_that_were_never_written(monkeypatch, mode):
    def nan_filled(*args, empty=np.empty, **kwargs):
        array = empty(*args, **kwargs)
        if np.issubdtype(array.dtype, np.floating):
            array.fill(np.nan)
        return array

    def broken_reset(**kwargs):
        raise RuntimeError("the gate is locked")

    env = counters((9, 3), mode)
    collecting = collector(env, linear_policy(env), 8)
    if mode is SAME_STEP:
        env._add_info = lambda infos, info, index: infos
    else:
        env.reset = broken_reset
    # memory is not NaN by itself, but may be
    monkeypatch.setattr(np, "empty", nan_filled)
    assert ("final_obs" if mode is SAME_STEP else "the gate is locked") in fault(collecting.collect)


def test_steps_with_a_fault_are_no_rollout_but_the_next_start_is_clean():
    env = vector([lambda: Bad("nan_reward", at=3)], SAME_STEP)
    policy = linear_policy(env)
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    fault(collector(env, policy, 4).collect)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    assert column(collector(env, policy, 2).collect().observations) == [0, 1]


# what a rollout says of the policy


@pytest.mark.parametrize(("env_id", "std"), [("CartPole-v1", 0.0), ("Pendulum-v1", 1.0)])
def test_stored_scores_equal_a_separate_evaluation(env_id, std):
    with contextlib.closing(make_vector_env(env_id, 3)) as env:
        policy = ActorCritic(env.single_observation_space, env.single_action_space, PolicyConfig(log_std_init=std))
        with torch.no_grad():
            # far from uniform, so that a wrong action or distribution would show
            policy.network.actor_output.weight.mul_(300.0)
        policy.inputs.normalizers[""].update(torch.randn(50, *env.single_observation_space.shape) * 0.1)
        rollout = collector(env, policy, 40).collect()
    evaluation = policy.evaluate(transitions(rollout.observations.flatten(0, 1), rollout.actions.flatten(0, 1)))
    for name in ("distribution", "log_probs", "values"):
        stored = getattr(rollout, name).flatten(0, 1)
        torch.testing.assert_close(stored, getattr(evaluation, name), rtol=0.0, atol=1e-6)
    assert rollout.log_probs.std() > 0.1
    assert rollout.values.std() > 0.1


@pytest.mark.parametrize(("limit", "size"), [("ROWS", 1), ("ROWS", 5), ("ROWS", 12), ("NUMBERS", 7)])
def test_scoring_in_pieces_changes_nothing(monkeypatch, limit, size):
    def collect():
        env = counters((2, 3, 7), SAME_STEP, "trunc")
        torch.manual_seed(0)
        return collector(env, linear_policy(env, 0.5), 12).collect()

    whole = collect()
    monkeypatch.setattr(lightning_ppo.policy.scoring, f"EVALUATION_{limit}", size)
    pieces = collect()
    for name in ("distribution", "log_probs", "values", "next_values"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 4.0)])
def test_environment_gets_the_clipped_action_and_the_rollout_the_sample(low, high):
    env = vector([lambda: Echo(low, high)] * 2, SAME_STEP)
    rollout = collector(env, linear_policy(env), 32).collect()
    sampled = rollout.actions[..., 0]
    assert (sampled.abs() > 1.0).any()
    # a sample of -1 is `low`, a sample of 1 is `high`
    expected = ((sampled + 1.0) / 2.0 * (high - low) + low).clamp(low, high)
    torch.testing.assert_close(rollout.rewards, expected)


def test_consecutive_rollouts_go_on_with_fresh_noise_and_the_current_policy():
    env = vector([lambda: Count(5), lambda: Count(100)], SAME_STEP)
    policy = linear_policy(env, 0.0, 1.0)
    with torch.no_grad():
        # fair coins: only fresh noise gives other actions
        policy.network.actor_output.weight.zero_()
    collecting = collector(env, policy, 64)
    first = collecting.collect()
    policy.version = 7
    with torch.no_grad():
        policy.network.critic_output.bias.fill_(2.0)
    second = collecting.collect()
    # 64 steps are 12 episodes of 5 and 4 steps more
    assert first.observations[-1, :, 0].tolist() == [3, 63]
    assert second.observations[:3, :, 0].tolist() == [[4, 64], [0, 65], [1, 66]]
    assert not torch.equal(first.actions, second.actions)
    assert (first.policy_version, second.policy_version) == (0, 7)
    assert first.values.unique().tolist() == [1.0]
    assert second.values.unique().tolist() == [2.0]
    # the episode that the edge cut counts once, with all its 5 steps; the long one ends in the second rollout
    assert first.episodes.lengths.tolist() == [5] * 12
    assert sorted(second.episodes.lengths.tolist()) == [5] * 13 + [100]


def test_same_generator_same_rollout_another_generator_another():
    def actions(seed):
        env = counters((5, 9), SAME_STEP)
        torch.manual_seed(0)
        return collector(env, linear_policy(env), 64, seed).collect().actions

    assert torch.equal(actions(3), actions(3))
    assert not torch.equal(actions(3), actions(4))


@pytest.mark.parametrize("mode", MODES)
def test_stepper_tells_resets_from_steps(mode):
    stepper = VectorStepper(counters((2, 3), mode))
    stepper.reset([0, 1])
    fillers, finals = [], []
    for _ in range(4):
        stepper.step(np.zeros(2, dtype=np.int64))
        fillers.append(stepper.filler.tolist())
        finals.append({index: float(x[0]) for index, x in stepper.final_observations.items()})
    if mode is NEXT_STEP:
        assert fillers == [[False, False], [False, False], [True, False], [False, True]]
        assert finals == [{}, {}, {}, {}]
    else:
        assert fillers == [[False, False]] * 4
        assert finals == [{}, {0: 2.0}, {1: 3.0}, {0: 2.0}]


def test_first_episodes_that_were_cut_are_trained_on_but_not_reported():
    seeds = derive_seeds(5, 0, 3, "training")
    reported = {}
    for skip in (False, True):
        with contextlib.closing(make_vector_env("Pendulum-v1", 3, backend="sync", stagger=True)) as env:
            policy = ActorCritic(env.single_observation_space, env.single_action_space)
            rollout = Collector(env, policy, 410, torch.Generator(), seeds, skip_first=skip).collect()
        assert rollout.valid.all()
        reported[skip] = sorted(rollout.episodes.lengths.tolist())
    assert len(reported[False]) == len(reported[True]) + 3 and reported[False][0] < 200
    assert set(reported[True]) == {200}


class Casts(TorchDispatchMode):
    """Counts how often a tensor of some shape is turned into bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        wanted = keywords.get("dtype") is torch.bfloat16
        self.count += function is torch.ops.aten._to_copy.default and wanted and arguments[0].shape == self.shape
        return function(*arguments, **keywords)


def test_autocast_casts_weights_once_for_a_rollout_and_anew_for_the_next():
    if not switch.is_on():
        pytest.skip("a shortcut, which --plain turns off")
    env = counters((3,), NEXT_STEP)
    policy = ActorCritic(env.single_observation_space, env.single_action_space, PolicyConfig(hidden_sizes=[5, 7]))
    weight = policy.network.actor_trunk.mlp[2].weight
    source = collector(env, policy, 16)
    # as Lightning's precision does, with the cache off
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for change in (0.0, 1.0):
            with torch.no_grad():
                weight += change
            with Casts(weight.shape) as casts:
                rollout = source.collect()
            # of the actor and of the critic
            assert casts.count == 2
            with torch.no_grad():
                seen = policy.distribution(rollout.observations.flatten(0, 1))
            torch.testing.assert_close(rollout.distribution.flatten(0, 1), seen, rtol=0, atol=0)
        assert not torch.is_autocast_cache_enabled()
        assert policy.value(rollout.observations.flatten(0, 1)).requires_grad
