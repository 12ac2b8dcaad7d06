"""Tasks in JAX: gymnax, Brax and Playground where they are installed, and one that needs JAX alone."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs import jax_envs
from lightning_ppo.envs.jax_envs import JaxVectorEnv
from lightning_ppo.envs.jax_tasks import JaxTask
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.support import env_specs
from lightning_ppo.support.errors import EnvironmentFault
from tests.kit.training import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # of JAX and the simulators
jax = pytest.importorskip("jax", reason="needs the extra jax")
BOX = spaces.Box(-100.0, 100.0, (2,), np.float32)


def walk(limit: int | None = 5) -> JaxTask:
    """Shows where it began and the sum of its actions; ends by itself where that exceeds 3."""

    def reset(key):
        start = jax.random.uniform(key)
        return jax.numpy.stack((start, 0.0 * start)), {"start": start, "sum": 0.0}

    def step(key, state, action):
        after = {"start": state["start"], "sum": state["sum"] + action[0]}
        return jax.numpy.stack((after["start"], after["sum"])), after, action[0], after["sum"] > 3.0

    return JaxTask(BOX, spaces.Box(-1.0, 1.0, (1,), np.float32), reset, step, limit)


def steps(env, count, start=0):
    found = []
    for t in range(start, start + count):
        actions = torch.tensor([[1.0], [0.1], [-0.5]]) * (1.0 + 0.01 * t)
        found.append(env.step(actions))
    return found


def test_ends_limits_and_final_observations_are_those_of_each_copy():
    env = JaxVectorEnv(3, walk())
    first, _ = env.reset(seed=[7, 8, 9])
    found = steps(env, 10)
    # sums 1, 2.01, 3.03: over after three steps; 0.1 and -0.5 a step: cut off after five
    assert [x[2].tolist() for x in found] == [[(t + 1) % 3 == 0, False, False] for t in range(10)]
    assert [x[3].tolist() for x in found] == [[False, (t + 1) % 5 == 0, (t + 1) % 5 == 0] for t in range(10)]
    observations, rewards, terminations, truncations, infos = found[2]
    torch.testing.assert_close(infos["final_obs"][0], torch.stack((first[0, 0], torch.tensor(3.03))))
    assert observations[0, 1] == 0.0 and observations[0, 0] != first[0, 0]
    assert rewards.dtype == torch.float32 and terminations.dtype == truncations.dtype == torch.bool


def test_copies_are_seeded_one_by_one_and_none_begins_twice_alike():
    alone = JaxVectorEnv(1, walk()).reset(seed=[8])[0]
    env = JaxVectorEnv(3, walk())
    together, _ = env.reset(seed=[7, 8, 9])
    assert torch.equal(together[1], alone[0])
    assert len(together[:, 0].unique()) == 3
    begun: list[list[float]] = [[x] for x in together[:, 0].tolist()]
    for observations, _, terminations, truncations, _ in steps(env, 2 * jax_envs.FRESH):
        for copy in (terminations | truncations).nonzero()[:, 0].tolist():
            begun[copy].append(observations[copy, 0].item())
    assert all(len(starts) == len({*starts}) > 10 for starts in begun)


def test_no_limit_is_no_limit():
    env = JaxVectorEnv(3, walk(None))
    env.reset(seed=1)
    assert not any(x[3].any() for x in steps(env, 20))
    assert JaxVectorEnv(3, walk(None), max_episode_steps=4).max_episode_steps == 4


def test_its_state_is_gone_on_from_exactly():
    env = JaxVectorEnv(3, walk())
    env.reset(seed=[7, 8, 9])
    steps(env, 7)
    state, expected = env.get_state(), steps(env, 40, 7)
    other = JaxVectorEnv(3, walk())
    other.reset(seed=[1, 2, 3])
    other.set_state(state)
    for ours, theirs in zip(steps(other, 40, 7), expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours[:4], theirs[:4], strict=True))


def test_collecting_goes_on_exactly_and_evaluation_plays_whole_episodes():
    def collector():
        torch.manual_seed(0)
        env = JaxVectorEnv(3, walk())
        env.stagger = True
        return Collector(env, ActorCritic(BOX, env.single_action_space), 9, torch.Generator().manual_seed(1), [0, 1, 2])

    first = collector()
    first.collect()
    state = first.state_dict()
    assert state["stepper"]["reason"] == ""
    expected = first.collect()
    second = collector()
    assert second.load_state_dict(state) == ""
    found = second.collect()
    for name in ("observations", "actions", "rewards", "next_values"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    episodes = play(first.policy, JaxVectorEnv(2, walk()), 6, seeds=[4, 5])
    assert len(episodes.lengths) == 6 and episodes.lengths.max() <= 5


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize(
    "task", ["gymnax:CartPole-v1", "gymnax:Pendulum-v1", "brax:inverted_pendulum", "playground:CartpoleBalance"]
)
def test_simulators_train_by_name(task):
    pytest.importorskip({"playground": "mujoco_playground"}.get(task.partition(":")[0], task.partition(":")[0]))
    data = RolloutDataModule(task, num_envs=16, num_steps=16, rollouts_per_epoch=2)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 64})
    make_trainer().fit(model, data)
    assert model.env_steps == 2 * 16 * 16


def test_another_name_is_one_line():
    pytest.importorskip("gymnax")
    with pytest.raises(EnvironmentFault, match="gymnax has no 'CartPole'; did you mean gymnax:CartPole-v1"):
        _ = RolloutDataModule("gymnax:CartPole", num_envs=2).observation_space
    assert env_specs.find_spec("gymnax:CartPole").entry_point is None


@pytest.mark.learning
def test_gymnaxs_cartpole_is_learnt():
    pytest.importorskip("gymnax")
    data = RolloutDataModule("gymnax:CartPole-v1", num_envs=256, num_steps=32, rollouts_per_epoch=20)
    settings = {"update": {"epochs": 4, "minibatch_size": 1024}, "optimizer": {"learning_rate": 2e-3}}
    model = PPO(data.observation_space, data.action_space, **settings)
    make_trainer().fit(model, data)
    assert play(model.policy, JaxVectorEnv(16, "CartPole-v1", "gymnax"), 32, seeds=[4]).returns.mean() >= 450.0
