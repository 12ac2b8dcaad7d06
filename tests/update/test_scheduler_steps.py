"""Schedulers that end before training does: known before anything is collected, or one line when they are stepped."""

import pytest
import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    MultiplicativeLR,
    OneCycleLR,
    SequentialLR,
)

from lightning_ppo import PPO
from lightning_ppo.support.errors import ConfigError
from tests.kit.training import make_pair, make_trainer


class Ends(LRScheduler):
    """A scheduler of the user's own, with rates for three iterations."""

    def get_lr(self):
        return [[1e-3, 1e-4, 1e-5][self.last_epoch]]


def one_cycle(optimizer, total_steps):
    return OneCycleLR(optimizer, 1e-3, total_steps=total_steps)


def listed(optimizer, total_steps):
    factors = [1.0] * (total_steps + 1)
    return LambdaLR(optimizer, lambda step: factors[step])


def in_sequence(optimizer, total_steps):
    parts = [ConstantLR(optimizer, total_iters=1), one_cycle(optimizer, total_steps - 1)]
    return SequentialLR(optimizer, parts, milestones=[1])


def multiplied(optimizer, total_steps):
    return MultiplicativeLR(optimizer, lambda step: {n: 0.9 for n in range(1, total_steps + 1)}[step])


def fit(make, trainer=None, total_env_steps=None, collected=None, **when):
    """Train for 4 iterations in 2 epochs, or what the Trainer is told, and return the rates that were used."""

    class Configured(PPO):
        def configure_optimizers(self):
            optimizer = Adam(self.parameters(), 1e-3)
            return [optimizer], [{"scheduler": make(optimizer), **when}]

        def training_step(self, rollout, batch_idx):
            (collected if collected is not None else []).append(self.iterations)
            super().training_step(rollout, batch_idx)

    model, data = make_pair(model=Configured, rollouts_per_epoch=2, total_env_steps=total_env_steps)
    made = make_trainer(**({"max_epochs": 2} | (trainer or {})))
    made.fit(model, data)
    return made, model


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")
@pytest.mark.parametrize("make", [one_cycle, listed, in_sequence, multiplied])
@pytest.mark.parametrize(
    ("when", "trainer", "steps", "said"),
    [
        ({}, {}, 4, "in the 4 steps of this training, once per iteration"),
        ({"frequency": 2}, {"max_epochs": 4}, 4, "in the 4 steps of this training, once in 2 iterations"),
        ({"interval": "epoch"}, {"max_epochs": 4}, 4, "in the 4 steps of this training, once per epoch"),
        ({}, {"max_epochs": 100, "max_steps": 32}, 4, "in the 4 steps of this training, once per iteration"),
    ],
)
def test_a_scheduler_that_is_too_short_is_known_before_anything_is_collected(make, when, trainer, steps, said):
    collected = []
    with pytest.raises(ConfigError, match=rf"^optimizer\.scheduler: \w+ fails {said}: \w+Error: ") as caught:
        fit(lambda optimizer: make(optimizer, steps - 1), trainer, collected=collected, **when)
    assert collected == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [one_cycle, listed, in_sequence, multiplied])
def test_one_that_is_long_enough_trains_as_if_nobody_had_tried_it(make):
    rates = []

    class Notes(PPO):
        def on_train_batch_end(self, *args):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = Adam(self.parameters(), 1e-3)
            return [optimizer], [make(optimizer, 4)]

    model, data = make_pair(model=Notes, rollouts_per_epoch=2)
    make_trainer(max_epochs=2).fit(model, data)
    optimizer = Adam([torch.nn.Parameter(torch.zeros(1))], 1e-3)
    scheduler, expected = make(optimizer, 4), []
    for _ in range(4):
        optimizer.step()
        scheduler.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(expected)


def test_env_steps_are_a_budget_too():
    model, data = make_pair()
    rows = data.num_steps * data.num_envs
    del model
    with pytest.raises(ConfigError, match="OneCycleLR fails in the 3 steps of this training, once per iteration"):
        fit(lambda optimizer: one_cycle(optimizer, 2), {"max_epochs": 100}, 3 * rows + 1)


@pytest.mark.parametrize(
    ("make", "trainer"),
    [
        (Ends, {}),  # what a user's own does in a step nobody knows
        (lambda optimizer: one_cycle(optimizer, 2), {"max_time": "00:01:00:00"}),  # which may come first
    ],
)
def test_what_cannot_be_known_is_one_line_when_it_happens(make, trainer):
    collected = []
    with pytest.raises(
        ConfigError, match=r"^optimizer\.scheduler: \w+ fails when it was stepped, once per iterat"
    ) as e:
        fit(make, trainer, collected=collected)
    assert collected == [0, 1, 2] and "\n" not in str(e.value)


def test_a_resumed_training_takes_the_steps_that_are_left(tmp_path):
    trainer, _ = fit(lambda optimizer: one_cycle(optimizer, 4), {"max_epochs": 1})
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    class Configured(PPO):
        def configure_optimizers(self):
            optimizer = Adam(self.parameters(), 1e-3)
            return [optimizer], [one_cycle(optimizer, 4)]

    for epochs, fine in ((2, True), (3, False)):
        model, data = make_pair(model=Configured, rollouts_per_epoch=2)
        trainer = make_trainer(max_epochs=epochs)
        if fine:
            trainer.fit(model, data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
            assert model.iterations == 4
        else:
            with pytest.raises(ConfigError, match=r"OneCycleLR fails in the 4 steps of this training"):
                trainer.fit(model, data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)


def test_periodic_ones_go_on():
    trainer, model = fit(lambda optimizer: CosineAnnealingLR(optimizer, 2))
    assert model.iterations == 4 and trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
