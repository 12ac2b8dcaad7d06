"""The budget is the limit that ends training first, whoever sets it; schedules run to their end with it."""

import logging
import time

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.run import training
from lightning_ppo.settings.loading import load
from tests.kit.commands import SMALL
from tests.kit.resuming import same
from tests.kit.training import make_pair, make_trainer

LINEAR = {"kind": "linear", "start": 1e-3, "end": 0.0}


class Spy(PPO):
    """Keeps the learning rate of every iteration, each of which takes `wait` seconds more."""

    wait = 0.0

    def training_step(self, rollout, batch_idx):
        time.sleep(self.wait)
        super().training_step(rollout, batch_idx)
        self.rates = [*getattr(self, "rates", []), self.trainer.optimizers[0].param_groups[0]["lr"]]


def pair(**settings):
    settings = {"optimizer": {"learning_rate": LINEAR}} | settings
    return make_pair("Pendulum-v1", model=Spy, **settings)  # 8 optimizer steps an iteration, 64 environment steps


@pytest.mark.parametrize(
    ("limits", "settings", "iterations"),
    [
        ({"max_steps": 40, "max_epochs": -1}, {}, 5),
        ({"max_steps": 40, "max_epochs": 100}, {}, 5),
        ({"max_steps": 800, "max_epochs": 5}, {}, 5),
        ({"max_steps": 40, "max_epochs": -1}, {"total_env_steps": 6400}, 5),
        ({"max_steps": 800, "max_epochs": -1}, {"total_env_steps": 320}, 5),
        ({"max_epochs": -1, "max_time": "01:00:00:00", "max_steps": 40}, {}, 5),
    ],
    ids=["steps", "steps first", "epochs first", "steps before env steps", "env steps first", "steps before time"],
)
def test_schedules_end_with_the_limit_that_comes_first(limits, settings, iterations):
    model, data = pair(**settings)
    make_trainer(**limits).fit(model, data)
    assert model.rates == pytest.approx([1e-3 * (1 - i / iterations) for i in range(iterations)], rel=1e-4)
    assert model.progress == 1.0


def test_cooldown_and_decay_end_with_the_optimizer_steps():
    rate = {"kind": "adaptive_kl", "start": 1e-3, "maximum": 1e-3, "minimum": 1e-5, "target_kl": 1e3, "cooldown": 0.5}
    model, data = pair(optimizer={"learning_rate": rate})
    make_trainer(max_epochs=-1, max_steps=80).fit(model, data)
    assert model.rates[:5] == [1e-3] * 5 and model.rates[-1] < 0.3e-3
    assert model.std_decay == pytest.approx(0.5)


@pytest.mark.parametrize("limit", ["max_time", "Timer"])
def test_schedules_end_with_the_time(limit):
    model, data = pair()
    model.wait = 0.1
    given = {"max_time": {"seconds": 1}} if limit == "max_time" else {"callbacks": [Timer({"seconds": 1})]}
    make_trainer(max_epochs=-1, **given).fit(model, data)
    assert model.rates[0] == pytest.approx(1e-3, rel=0.1) and model.rates[-1] < 0.4e-3
    assert model.rates == sorted(model.rates, reverse=True)
    assert model.progress == 1.0 and model.std_decay == pytest.approx(0.5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("limits", [{"max_steps": 80}, {"max_time": {"hours": 1}}], ids=["steps", "time"])
@pytest.mark.parametrize("saved_at", [2, 3])
def test_a_resumed_run_goes_on_in_the_budget_of_its_checkpoint(limits, saved_at, tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if module.iterations == saved_at and not resumed:
                trainer.save_checkpoint(tmp_path / "agent.ckpt")
                raise KeyError("stop here")
            if module.iterations == saved_at + 1:
                states.append(([*module.rates][-1], module.state_dict()))
                trainer.should_stop = True

    states, resumed = [], False
    model, data = pair(rollouts_per_epoch=2)
    with pytest.raises(KeyError, match="stop here"):
        make_trainer(max_epochs=-1, callbacks=[Save()], **limits).fit(model, data)
    share = model.progress
    resumed = True
    for _ in range(2):
        model, data = pair(rollouts_per_epoch=2)
        trainer = make_trainer(max_epochs=-1, callbacks=[Save()], **limits)
        trainer.fit(model, data, ckpt_path=tmp_path / "agent.ckpt", weights_only=True)
    assert states[0][0] == states[1][0] == pytest.approx(1e-3 * (1 - share), rel=1e-6) and share > 0.0
    assert same(states[0][1], states[1][1])


def test_optimizer_steps_stopped_and_resumed_are_those_of_one_run(tmp_path):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = module.iterations == 4

    def fit(callbacks=(), path=None):
        model, data = pair(rollouts_per_epoch=2)
        trainer = make_trainer(max_epochs=-1, max_steps=64, callbacks=list(callbacks))
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        return model, trainer

    through, _ = fit()
    _, trainer = fit([Stop()])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(path=tmp_path / "half.ckpt")
    assert resumed.rates == through.rates[4:] and same(resumed.state_dict(), through.state_dict())


def test_more_time_on_resuming_is_used(tmp_path):
    class Enough(pl.Callback):
        def on_train_batch_start(self, trainer, module, *args):
            shares.append(module.progress)
            trainer.should_stop = module.iterations > 0

    shares, path = [], tmp_path / "agent.ckpt"
    for seconds, ckpt in ((10, None), (10, path), (1e6, path)):
        model, data = pair()
        model.wait = 0.0 if ckpt else 0.2
        trainer = make_trainer(max_epochs=-1, max_time={"seconds": seconds}, callbacks=[Enough()])
        trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
        if ckpt is None:
            trainer.save_checkpoint(path)
            saved = model.progress
    assert saved > 0.02
    assert shares[0] < 1e-3 and shares[2] == saved and shares[-1] < 1e-5


def test_epochs_that_are_cut_short_count_as_epochs():
    class Skips(Spy):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 else None

    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule("Pendulum-v1", num_envs=4, num_steps=16, rollouts_per_epoch=4)
    update = {"epochs": 2, "minibatch_size": 16}
    model = Skips(data.observation_space, data.action_space, update=update, optimizer={"learning_rate": LINEAR})
    make_trainer(max_epochs=4).fit(model, data)
    assert model.rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_epochs_beside_a_budget_of_env_steps_interrupt_and_say_so(caplog):
    model, data = pair(total_env_steps=640)
    with caplog.at_level(logging.INFO, logger="lightning_ppo"):
        make_trainer(max_epochs=3).fit(model, data)
    assert model.rates == pytest.approx([1e-3, 9e-4, 8e-4])
    assert caplog.text.count("max_epochs=3 ends this fit after 192 steps; schedules follow total_env_steps=640") == 1


def test_without_any_limit_a_line_says_that_schedules_stand_still():
    class Enough(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            trainer.should_stop = module.iterations == 2

    model, data = pair()
    with pytest.warns(UserWarning, match="no limit of this training is known.*total_env_steps") as told:
        make_trainer(max_epochs=-1, callbacks=[Enough()]).fit(model, data)
    assert sum("no limit" in str(warning.message) for warning in told) == 1
    assert model.rates == [1e-3, 1e-3]


def test_a_minimum_of_epochs_beyond_the_budget_is_told():
    model, data = pair(total_env_steps=128)
    with pytest.warns(UserWarning, match="continues beyond total_env_steps, as min_epochs"):
        make_trainer(max_epochs=-1, min_epochs=3).fit(model, data)
    assert model.iterations == 3 and model.progress == 1.0


@pytest.mark.parametrize(("count", "rollouts_per_epoch"), [(3, 1), (3, 2), (3, 5), (1, 2), (7, 2)])
def test_fast_dev_run_makes_as_many_rollouts_and_evaluates(count, rollouts_per_epoch):
    pl.seed_everything(3, verbose=False)
    evaluation = {"episodes": 2, "num_envs": 2}
    data = RolloutDataModule(
        "CartPole-v1", num_envs=4, num_steps=16, rollouts_per_epoch=rollouts_per_epoch, evaluation=evaluation, seed=3
    )
    settings = {"optimizer": {"learning_rate": LINEAR}, "update": {"minibatch_size": 16}}
    model = Spy(data.observation_space, data.action_space, **settings)
    trainer = make_trainer(fast_dev_run=count, limit_val_batches=1.0)
    trainer.fit(model, data)
    assert model.iterations == count and "eval/return_mean" in trainer.callback_metrics
    assert model.rates == pytest.approx([1e-3 * (1 - i / count) for i in range(count)])


def test_fast_dev_run_on_the_command_line_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    class Count(pl.Callback):
        def on_fit_end(self, trainer, module):
            seen.append((module.iterations, "eval/return_mean" in trainer.callback_metrics))

    arguments = [*SMALL, "trainer.fast_dev_run=3", "evaluation.episodes=2", "total_env_steps=100000"]
    training.train(load([], [*arguments, f"run_dir={tmp_path / 'run'}"]), [Count()])
    assert seen == [(3, True)] and not (tmp_path / "run").exists()


def test_std_decay_follows_optimizer_steps_bit_for_bit_as_env_steps():
    """The same budget, said in two ways, is the same training."""
    states = []
    for limits, settings in (({"max_steps": 40}, {}), ({}, {"total_env_steps": 320})):
        model, data = pair(**settings)
        make_trainer(max_epochs=-1, **limits).fit(model, data)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
