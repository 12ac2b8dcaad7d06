"""Models, optimizers and callbacks that cannot be trained with, or do less than they seem to: one line each."""

import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from torch import nn
from torch.optim import SGD, Adam, SparseAdam

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError
from tests.kit.training import make_pair, make_trainer


class Encoder(nn.Module):
    """Eight features."""

    num_features = 8

    def __init__(self, space):
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.build()

    def build(self):
        pass

    def forward(self, x):
        return self.layer(x)


class Double(Encoder):
    """Its parameters are of float64."""

    def build(self):
        self.layer.double()

    def forward(self, x):
        return self.layer(x.double()).float()


class Complex(Encoder):
    """Has a complex parameter."""

    def build(self):
        self.factor = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, x):
        return self.layer(x) * self.factor.abs()


class FrozenHalf(Encoder):
    """A pretrained layer of half precision that is not trained."""

    def build(self):
        self.layer.half().requires_grad_(False)

    def forward(self, x):
        return self.layer(x.half()).float()


@pytest.mark.parametrize("encoder", [Double, Complex])
def test_parameters_of_several_dtypes_are_one_line(encoder):
    with pytest.raises(
        ConfigError, match=r"^policy: \S+ is of torch\.\w+, \S+ of torch\.\w+; what is trained needs one"
    ):
        ActorCritic(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), PolicyConfig(encoder=encoder))


def test_what_is_not_trained_may_be_of_another_dtype():
    model, data = make_pair(policy={"encoder": FrozenHalf, "core": "gru"}, update={"epochs": 1, "minibatch_size": 32})
    assert model.policy.dtype == model.policy.initial_states(1).dtype == torch.float32
    make_trainer().fit(model, data)
    encoder = model.policy.network.actor_trunk.encoder
    assert encoder.layer.weight.dtype == torch.float16 and model.iterations == 1


class Freezes(pl.Callback):
    """Freezes the whole model."""

    def on_train_start(self, trainer, module):
        module.freeze()


def test_a_model_that_is_frozen_is_one_line():
    model, data = make_pair()
    with pytest.raises(ConfigError, match=r"^nothing can be trained: all parameters are frozen"):
        make_trainer(callbacks=[Freezes()]).fit(model, data)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: SparseAdam(p), "SparseAdam cannot make a step: SparseAdam does not support dense gradients"),
        (lambda p: Adam(p, differentiable=True), "Adam cannot make a step: a leaf Variable"),
        (lambda p: Adam(p, capturable=True), "Adam cannot make a step: If capturable=True"),
    ],
)
def test_optimizers_that_cannot_make_a_step_are_known_before_anything_is_collected(make, said, monkeypatch):
    model, data = make_pair(model=type("Own", (PPO,), {"configure_optimizers": lambda self: make(self.parameters())}))
    monkeypatch.setattr("lightning_ppo.collection.collector.Collector.collect", lambda self: pytest.fail("collected"))
    with pytest.raises(ConfigError, match=f"^configure_optimizers: {said}") as caught:
        make_trainer().fit(model, data)
    assert "\n" not in str(caught.value)


def test_trying_an_optimizer_out_leaves_no_trace():
    made = []

    class Own(PPO):
        def configure_optimizers(self):
            made.append(SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=0.1))
            return made[-1]

        def on_fit_start(self):
            super().on_fit_start()
            assert not made[-1].state and all(p.grad is None for p in self.parameters())
            self.before = [p.detach().clone() for p in self.parameters()]

        def on_train_batch_start(self, batch, batch_idx):
            assert all(torch.equal(p, before) for p, before in zip(self.parameters(), self.before, strict=True))

    model, data = make_pair(model=Own)
    make_trainer().fit(model, data)
    assert model.iterations == 1


class Stops(pl.Callback):
    """Breaks off each epoch after its first rollout."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            raise StopIteration


class StopsInLoss(PPO):
    """The same by an iterator in the loss that has come to its end."""

    def training_step(self, rollout, batch_idx):
        if batch_idx == 1:
            next(iter([]))
        super().training_step(rollout, batch_idx)


class Skips(PPO):
    """The same as Lightning has it."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 1 else None


@pytest.mark.parametrize(("model", "callbacks", "made"), [(PPO, [Stops()], 1), (StopsInLoss, [], 2), (Skips, [], 1)])
def test_an_epoch_that_is_broken_off_says_so_once(model, callbacks, made, caplog):
    agent, data = make_pair(model=model, rollouts_per_epoch=3)
    make_trainer(max_epochs=2, callbacks=callbacks).fit(agent, data)
    assert agent.iterations == 2 * made
    assert caplog.text.count(f"an epoch has had {made} of 3 iterations: something raised StopIteration") == 1


class Stop(pl.Callback):
    """Stops the training as Lightning has it."""

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = True


@pytest.mark.parametrize(
    "settings", [{}, {"max_steps": 8}, {"callbacks": [Stop()]}, {"limit_train_batches": 1}, {"fast_dev_run": 2}]
)
def test_an_epoch_that_ends_as_it_should_says_nothing(settings, caplog):
    agent, data = make_pair(rollouts_per_epoch=3)
    make_trainer(**settings).fit(agent, data)
    assert "an epoch has had" not in caplog.text


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", True])
def test_what_is_no_seed_is_one_line(seed):
    with pytest.raises(ConfigError, match=r"^seed: expected an integer from 0 to 2\*\*32 - 1, got "):
        RolloutDataModule("CartPole-v1", num_envs=2, seed=seed)
