"""What is learnt from must be finite; what is only logged may be anything."""

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.support.errors import NonFiniteError
from lightning_ppo.update.minibatch_update import MinibatchUpdate
from tests.kit.training import eager_and_compiled, make_trainer


class Noise(gymnasium.Env):
    """Shows nothing of interest."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), float(action[0]), self.t == 9, False, {}


class Normalised(nn.Module):
    """An encoder with batch normalisation."""

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        self.num_features = 2
        self.layer = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class FarOff(PPO):
    """Reports ratios that no float holds."""

    def minibatch_loss(self, minibatch):
        loss, reported = super().minibatch_loss(minibatch)
        return loss, reported._replace(log_ratios=reported.log_ratios + 1000.0)


def make_pair(actions: int = 2, model: type[PPO] = PPO, rollouts: int = 2, **settings) -> tuple[PPO, RolloutDataModule]:
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule("tests.update.test_finite:Noise", 2, 16, rollouts_per_epoch=rollouts, backend="sync")
    update = {"epochs": 2, "minibatch_size": 16} | settings.pop("update", {})
    return model(data.observation_space, data.action_space, update=update, **settings), data


@eager_and_compiled
def test_a_sampled_divergence_that_overflows_stops_nothing(compiled):
    model, data = make_pair(model=FarOff, compile=compiled)
    trainer = make_trainer()
    trainer.fit(model, data)
    assert model.iterations == 2
    assert trainer.callback_metrics["update/approximate_kl"].isinf()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("objective", ["clip", "trpo"])
def test_an_entropy_counts_where_it_has_a_weight(monkeypatch, objective):
    def boundless(parameters: Tensor) -> Tensor:
        return parameters.sum(-1) * 0.0 - torch.inf

    model, data = make_pair(objective=objective)
    monkeypatch.setattr(model.policy.head, "entropy", boundless)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    make_trainer().fit(model, data)
    assert model.iterations == 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not any(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@eager_and_compiled
@pytest.mark.parametrize("plain", [False, True])
def test_a_loss_that_is_not_finite_moves_nothing_though_its_gradient_is(monkeypatch, plain, compiled):
    if plain and compiled:
        pytest.skip("one rules out the other")
    model, data = make_pair(update={"entropy_coefficient": 0.01}, plain=plain, compile=compiled)
    entropy = model.policy.head.entropy
    monkeypatch.setattr(model.policy.head, "entropy", lambda parameters: entropy(parameters).detach() - torch.inf)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(NonFiniteError, match="loss/entropy is -inf in minibatch 1"):
        make_trainer().fit(model, data)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.shortcut
def test_a_step_is_left_out_on_the_device_as_it_is_on_the_host(monkeypatch):
    """Where looking at a norm would be to wait, Adam is told by a flag."""

    class Breaks(PPO):
        made = 0

        def minibatch_loss(self, minibatch):
            loss, reported = super().minibatch_loss(minibatch)
            self.made += 1
            return loss * (torch.nan if self.made == 6 else 1.0), reported

    def broken() -> tuple[PPO, dict]:
        model, data = make_pair(model=Breaks)
        trainer = make_trainer()
        with pytest.raises(NonFiniteError, match="grad_norm is nan in minibatch 2 of update epoch 1, iteration 2"):
            trainer.fit(model, data)
        return model, trainer.optimizers[0].state_dict()["state"]

    model, moments = broken()
    on_device = MinibatchUpdate._told_on_device
    flags = []

    def told(self):
        with monkeypatch.context() as patch:
            patch.setattr(type(self.module), "device", torch.device("meta"), raising=False)
            flag = on_device(self)
        for optimizer in self.optimizers:
            optimizer.optimizer.found_inf = flags.append(torch.zeros(())) or flags[-1]
        assert flag is not None
        return flags[-1]

    monkeypatch.setattr(MinibatchUpdate, "_told_on_device", told)
    other, theirs = broken()
    assert [float(flag) for flag in flags] == [0.0, 1.0]
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    for index, state in moments.items():
        assert all(torch.equal(value, theirs[index][name]) for name, value in state.items())


def test_statistics_of_batch_normalisation_are_put_back():
    model, data = make_pair(rollouts=1, policy={"encoder": "tests.update.test_finite.Normalised"})
    make_trainer().fit(model, data)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.coefficients.schedules["value_coefficient"] = lambda progress: torch.nan
    with pytest.raises(NonFiniteError, match="update/grad_norm is nan in minibatch 1"):
        make_trainer().fit(model, data)
    after = model.state_dict()
    moved = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert all("reward_scaler" in name for name in moved)  # which takes rewards in before they are learnt from
    assert after["policy.network.actor_trunk.encoder.layer.num_batches_tracked"] > 0


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_after_backward"])
@pytest.mark.parametrize(
    "optimizer", [{}, {"class_path": "torch.optim.SGD", "learning_rate": 1e-3}], ids=["adam", "sgd"]
)
def test_a_gradient_that_a_callback_breaks_is_not_learnt_from(plain, hook, optimizer):
    seen = []

    def breaks(trainer, module, *_):
        seen.append([parameter.detach().clone() for parameter in module.parameters()])
        if len(seen) == 6:
            next(parameter for parameter in module.parameters() if parameter.grad is not None).grad.fill_(torch.inf)

    model, data = make_pair(plain=plain, optimizer=optimizer)
    with pytest.raises(NonFiniteError, match=r"grad_norm is (inf|nan) in minibatch 2 of update epoch 1, iteration 2"):
        make_trainer(callbacks=[LambdaCallback(**{hook: breaks})]).fit(model, data)
    assert all(torch.equal(one, other) for one, other in zip(seen[5], model.parameters(), strict=True))
