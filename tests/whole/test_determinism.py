"""The same seed gives the same weights bit for bit; evaluating, or not, makes no difference."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from tests.kit.training import eager_and_compiled, make_trainer


def weights(env: str, seed: int, evaluate: bool = False, **kwargs) -> torch.Tensor:
    pl.seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        env, num_envs=4, num_steps=16, rollouts_per_epoch=1, evaluation={"episodes": 2, "num_envs": 2}
    )
    model = PPO(data.observation_space, data.action_space, update={"epochs": 2, "minibatch_size": 16}, **kwargs)
    make_trainer(max_epochs=3, limit_val_batches=1.0 if evaluate else 0).fit(model, data)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@eager_and_compiled
def test_same_seed_same_bits_other_seed_other_bits(env, compiled):
    first, second = weights(env, 42, compile=compiled), weights(env, 42, compile=compiled)
    assert torch.equal(first, second)
    assert not torch.equal(first, weights(env, 99, compile=compiled))


def test_evaluating_does_not_move_training():
    assert torch.equal(weights("CartPole-v1", 42, evaluate=True), weights("CartPole-v1", 42, evaluate=False))


def test_what_happened_before_does_not_matter():
    first = weights("CartPole-v1", 42)
    torch.randn(1000)
    weights("Pendulum-v1", 7)
    assert torch.equal(weights("CartPole-v1", 42), first)
