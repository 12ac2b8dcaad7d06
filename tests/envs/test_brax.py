"""Brax itself behind `TensorVectorEnv`; skipped where it is not installed (`pip install brax gym`, which needs JAX)."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.simulators import TensorVectorEnv
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.policy.actor_critic import ActorCritic
from tests.kit.training import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # of JAX, brax and gym
LENGTH, COPIES, STEPS = 20, 16, 60


@pytest.fixture(scope="module")
def make():
    """A maker of inverted pendulums: 16 copies, whose episodes are cut off after 20 steps, and the simulator within."""
    brax = pytest.importorskip("brax.envs", reason="needs brax")
    wrappers = pytest.importorskip("brax.envs.wrappers.gym", reason="needs gym")
    torch_wrapper = pytest.importorskip("brax.envs.wrappers.torch", reason="needs gym")

    def build():
        simulator = brax.create("inverted_pendulum", batch_size=COPIES, episode_length=LENGTH)
        vector = wrappers.VectorGymWrapper(simulator, seed=1)
        low, high = (np.full(shape, np.inf, np.float32) for shape in (simulator.observation_size,) * 2)
        env = TensorVectorEnv(
            torch_wrapper.TorchWrapper(vector), spaces.Box(-low, high), spaces.Box(-3.0, 3.0, (simulator.action_size,))
        )
        return env, vector

    return build


def test_truncations_are_told_from_terminations(make, caplog):
    env, vector = make()
    stepper = make_stepper(env, "auto", [1])
    generator, ends = torch.Generator().manual_seed(0), [0, 0]
    ages = np.zeros(COPIES, int)
    for _ in range(STEPS):
        actions = 3.0 * (2.0 * torch.rand(COPIES, 1, generator=generator) - 1.0)
        actions[: COPIES // 2] = 0.0  # which falls later
        rewards, terminations, truncations = stepper.step(actions)
        ages += 1
        cut = np.asarray(vector._state.info["truncation"]) > 0.5
        done = np.asarray(vector._state.done) > 0.5
        assert rewards.shape == (COPIES,) and stepper.observations.shape == (COPIES, 4)
        np.testing.assert_array_equal(truncations.numpy(), cut)
        np.testing.assert_array_equal(terminations.numpy(), done & ~cut)
        assert (ages[cut] == LENGTH).all() and (ages[done & ~cut] <= LENGTH).all()
        ends = [ends[0] + int(terminations.sum()), ends[1] + int(truncations.sum())]
        ages[done] = 0
    assert min(ends) > 0
    assert "names no truncations" not in caplog.text


def test_rollouts_and_training(make):
    env, _ = make()
    torch.manual_seed(0)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    rollout = Collector(env, policy, STEPS, torch.Generator().manual_seed(0), [1]).collect()
    assert rollout.truncations.any() and rollout.terminations.any()
    assert not (rollout.truncations & rollout.terminations).any()
    assert rollout.episodes.lengths.max() == LENGTH
    data = RolloutDataModule(make()[0], num_steps=16, rollouts_per_epoch=2)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 64})
    make_trainer().fit(model, data)
    assert model.iterations == 2 and model.env_steps == 2 * 16 * COPIES
