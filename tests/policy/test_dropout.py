"""Dropout: units are left out in the update and nowhere else."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo import PPO
from lightning_ppo.collection.acting import TorchActor
from lightning_ppo.collection.numpy_acting import NumpyActor
from lightning_ppo.policy.actor_critic import ActorCritic, eval_mode
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.update.objectives import kl_k3, masked_log_ratios
from tests.kit.training import FIRST_ORDER, Recording, make_pair, make_trainer, sharpen, train

DROPOUT = {"dropout": 0.3}
PLANE = spaces.Box(-1.0, 1.0, (3,))


def make_policy(dropout: float) -> ActorCritic:
    torch.manual_seed(1)
    return ActorCritic(PLANE, spaces.Discrete(4), PolicyConfig(dropout=dropout))


def test_each_hidden_layer_drops_its_share():
    policy, wide = make_policy(0.3), torch.ones(1, 3).expand(2000, 3)
    features = policy.network.actor_trunk.mlp(wide)
    assert float((features == 0.0).float().mean()) == pytest.approx(0.3, abs=0.02)
    layers = [type(module).__name__ for module in policy.network.critic_trunk.mlp]
    assert layers == ["Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout"]


def test_no_dropout_is_a_network_without_dropout():
    assert not any(isinstance(module, torch.nn.Dropout) for module in make_policy(0.0).modules())
    # the initial weights do not depend on it
    for one, other in zip(make_policy(0.0).parameters(), make_policy(0.3).parameters(), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_acting_uses_every_unit():
    observations = torch.randn(50, 5, 3).numpy()
    chosen = []
    for dropout, kind in ((0.0, NumpyActor), (0.5, NumpyActor), (0.5, TorchActor)):
        policy = make_policy(dropout)
        with eval_mode(policy):
            actor = kind(policy, (50, 5), torch.Generator().manual_seed(0))
            for step in range(50):
                actor(step, observations[step], np.zeros(5, np.bool_))
        chosen.append(actor.actions)
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])


def test_prediction_outside_training_uses_every_unit():
    policy, observations = make_policy(0.5), torch.randn(64, 3)
    assert policy.training
    first = policy.predict(observations)[0]
    assert all(torch.equal(first, policy.predict(observations)[0]) for _ in range(5))
    assert policy.training


class Compared(Recording):
    """Compares whole network and behaviour policy before the first minibatch, and measures KL there."""

    whole: torch.Tensor | None = None

    def _backward(self, batch, rows, scale):
        if self.whole is None:
            with eval_mode(self.policy), torch.no_grad():
                now = self.policy.evaluate(batch)
            self.whole = masked_log_ratios(now.log_probs, batch.log_probs, batch.weights)
            self.first_kl = self.divergence(batch) / batch.weights.sum()
        return super()._backward(batch, rows, scale)


def test_the_ratio_is_one_where_no_unit_is_left_out():
    """The behaviour policy is the whole network; an update compares thinned ones with it."""
    model, data = make_pair("CartPole-v1", Compared, policy=DROPOUT)
    sharpen(model)
    make_trainer().fit(model, data)
    assert model.whole.abs().max() <= 1e-5  # every unit: the ratio is 1 ...
    assert model.log_ratios[0].abs().mean() > 0.01  # ... with units left out it scatters around 1
    assert model.first_kl.abs() <= 1e-6  # and KL is measured without dropout
    assert kl_k3(model.log_ratios[0]).mean() > 1e-3


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_every_first_order_objective_trains_with_it(name, shared):
    settings = {"objective": name, "update": {"minibatch_size": 16}, "policy": {**DROPOUT, "shared_trunk": shared}}
    model, data = make_pair("Pendulum-v1", **settings)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    make_trainer().fit(model, data)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.isfinite(after).all() and not torch.equal(before, after)


@pytest.mark.compiled
def test_compiled_dropout_leaves_out_other_units_in_each_minibatch():
    gradients = []

    class Twice(PPO):
        def _backward(self, batch, rows, scale):
            for _ in range(2):
                reported = super()._backward(batch, rows, scale)
                gradients.append(torch.cat([p.grad.flatten() for p in self.parameters()]))
            return reported

    settings = {"policy": DROPOUT, "compile": True, "update": {"epochs": 1, "minibatch_size": 64}}
    model, data = make_pair("Pendulum-v1", Twice, **settings)
    make_trainer().fit(model, data)
    assert model.compile_seconds > 0.0
    assert not torch.equal(*gradients)


def test_a_trust_region_is_that_of_the_whole_network():
    model = train(policy=DROPOUT, rollouts=6)
    accepted = [m for m in model.logged if m["update/step_fraction"] > 0.0]
    assert len(accepted) >= 4
    # KL is measured with every unit after the step; with units left out it would exceed the bound by far
    assert all(0.0 < m["update/kl"] <= 0.01 * (1.0 + 1e-5) for m in accepted)
