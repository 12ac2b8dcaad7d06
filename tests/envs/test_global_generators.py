"""Environments that draw from Python's, NumPy's and torch's global generators: no two processes draw alike."""

import contextlib
import random

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import lightning_ppo.collection.datamodule
import lightning_ppo.collection.environments
from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.processes import shares_of
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.support.randomness import get_random_state, own_generators, seed_process
from tests.kit.envs import make_vector_env
from tests.kit.training import make_trainer


def draws() -> list[float]:
    return [random.random(), np.random.random(), float(torch.rand(1, dtype=torch.float64))]


class Draws(gymnasium.Env):
    """Episodes of 4 steps; shows one number of each global generator, and those that it was built with."""

    observation_space = spaces.Box(0.0, 1.0, (6,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.built, self.t = draws(), 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.array(draws() + self.built), {}

    def step(self, action):
        self.t += 1
        return np.array(draws() + self.built), 1.0, False, self.t >= 4, {}


ID = f"{__name__}:Draws"


def seen(env, seeds, steps=3):
    """Return observations (T, N, 6)."""
    stepper = VectorStepper(env)
    stepper.reset(seeds)
    found = [stepper.observations.copy()]
    for _ in range(steps):
        stepper.step(np.zeros(env.num_envs, np.int64))
        found.append(stepper.observations.copy())
    return np.array(found)


def assert_all_differ(numbers):
    assert len(np.unique(numbers)) == np.size(numbers)


def test_copies_in_processes_of_their_own_draw_by_their_seeds():
    def run(seeds):
        with contextlib.closing(make_vector_env(ID, len(seeds), backend="async")) as env:
            return seen(env, seeds)

    np.random.seed(1)
    first = run([11, 12, 13])
    assert_all_differ(first[..., :3])
    assert_all_differ(first[0, :, 3:])  # what they were built with
    np.random.seed(2)
    again = run([12, 11])
    # a copy's draws depend on its seed, whoever else is there and whatever else was drawn
    np.testing.assert_array_equal(again[..., :3], first[:, [1, 0], :3])


def test_another_evaluation_with_the_same_seeds_draws_the_same():
    with contextlib.closing(make_vector_env(ID, 2, backend="async")) as env:
        first, again, other = seen(env, [1, 2]), seen(env, [1, 2]), seen(env, [3, 4])
    np.testing.assert_array_equal(first, again)
    assert_all_differ(np.concatenate((first, other))[..., :3])


def test_copies_in_processes_of_their_own_go_on_drawing_where_they_were():
    with contextlib.closing(make_vector_env(ID, 2, backend="async")) as env:
        stepper = VectorStepper(env)
        stepper.reset([1, 2])
        stepper.step(np.zeros(2, np.int64))
        state = stepper.state_dict()
        stepper.step(np.zeros(2, np.int64))
        expected = stepper.observations.copy()
    with contextlib.closing(make_vector_env(ID, 2, backend="async")) as env:
        stepper = VectorStepper(env)
        stepper.reset([3, 4])
        stepper.load_state_dict(state)
        stepper.step(np.zeros(2, np.int64))
        np.testing.assert_array_equal(stepper.observations[:, :3], expected[:, :3])


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_ranks_draw_differently(backend, monkeypatch):
    def of_rank(rank, seed=1):
        for module in (lightning_ppo.collection.datamodule, lightning_ppo.collection.environments):
            monkeypatch.setattr(module, "rank", lambda: rank)
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        pl.seed_everything(seed, verbose=False)
        before = get_random_state()
        data = RolloutDataModule({"id": ID, "num_envs": 2, "backend": backend}, evaluation={"num_envs": 2}, seed=seed)
        built = [data.env, data.environments.evaluation]
        for name in ("torch", "numpy", "python"):  # so that ranks begin with the same weights
            assert str(get_random_state()[name]) == str(before[name])
        data.setup("fit")
        assert torch.initial_seed() == seed
        first = shares_of(2, 1, seed, rank)[0].seeds
        found = np.concatenate(
            [
                seen(env, seeds)
                for env, seeds in zip(built, (first, [10 * seed + rank, 10 * seed + 5 + rank]), strict=True)
            ],
            1,
        )
        data.teardown("fit")
        return found

    both = np.concatenate((of_rank(0), of_rank(1)), 1)
    assert_all_differ(both[..., :3])
    assert_all_differ(both[0, :, 3:])
    np.testing.assert_array_equal(of_rank(1), both[:, 4:])
    assert_all_differ(np.concatenate((of_rank(0, seed=2), both), 1)[..., :3])


def train(epochs=1, checkpoint=None, save=None, **settings):
    pl.seed_everything(3, verbose=False)
    env = {"id": ID, "num_envs": 4, "backend": settings.pop("backend", "sync")}
    evaluation = {"episodes": settings.pop("episodes", 0), "num_envs": 2}
    data = RolloutDataModule(env, num_steps=5, rollouts_per_epoch=1, seed=3, evaluation=evaluation, **settings)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 20})
    found = []
    look = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *args: found.append(args[2].observations.clone()))
    keep = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, _: save and trainer.current_epoch == 0 and trainer.save_checkpoint(save)
    )
    trainer = make_trainer(max_epochs=epochs, callbacks=[look, keep])
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    return torch.stack(found).numpy()


@pytest.mark.ranks
@pytest.mark.parametrize("settings", [{"processes": 2}, {"overlap": True, "backend": "async"}], ids=str)
def test_processes_that_collect_draw_differently_and_repeatably(settings):
    first = train(**settings)
    assert_all_differ(first[..., :3])
    np.testing.assert_array_equal(train(**settings), first)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_resumed_training_draws_what_it_would_have_drawn(backend, tmp_path):
    file = tmp_path / "drawn.ckpt"
    straight = train(3, save=file, backend=backend, episodes=2)
    np.testing.assert_array_equal(train(3, file, backend=backend, episodes=2), straight[1:])
    # evaluation draws from generators of its own
    np.testing.assert_array_equal(train(3, backend=backend), straight)


def test_an_evaluation_depends_on_its_seeds_alone():
    returns = []
    for seed in (1, 2):
        pl.seed_everything(seed, verbose=False)
        with own_generators(4):
            env = make_vector_env(ID, 2, backend="sync")
        torch.manual_seed(0)
        policy = ActorCritic(env.single_observation_space, env.single_action_space)
        before = draws, get_random_state()["numpy"]["key"].clone(), random.getstate(), torch.get_rng_state()
        shown = []
        env.step = lambda actions, step=env.step, shown=shown: (shown.append(step(actions)), shown[-1])[1]
        play(policy, env, 4, seeds=[1, 2])
        returns.append(np.array([np.array(step[0]) for step in shown]))
        assert torch.equal(get_random_state()["numpy"]["key"], before[1])
        assert random.getstate() == before[2] and torch.equal(torch.get_rng_state(), before[3])
    np.testing.assert_array_equal(*returns)


def test_seeding_a_process_leaves_the_seed_that_others_derive_theirs_from():
    torch.manual_seed(17)
    untouched = draws()
    torch.manual_seed(17)
    seed_process(5)
    first = draws()
    assert torch.initial_seed() == 17 and first[2] != untouched[2]
    seed_process(5)
    assert draws() == first
    torch.manual_seed(5)
    assert float(torch.rand(1, dtype=torch.float64)) == first[2]
