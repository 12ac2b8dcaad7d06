"""`compile=auto`: the update of long runs is compiled, that of short ones and of code of the user's own is not."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.settings.loading import load
from lightning_ppo.speed import compiled_gradients
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update import compiling, minibatch_update

OFF = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)


class Eager:
    """Stands for a compiler: the loss as it is, with what happens on the way."""

    made = 0
    fails: Exception | None = None
    breaks_after = 10**9

    def __init__(self, policy, flat, loss, accumulate, pure) -> None:
        type(self).made += 1
        self.flat, self.loss, self.calls, self.alike = flat, loss, 0, False

    def begin(self):
        pass

    def compile(self, *example):
        if self.fails:
            raise self.fails

    def release(self) -> None:
        pass

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls > self.breaks_after:
            raise RuntimeError("it compiles again and cannot")
        self.flat.gradients.zero_()
        loss, reported = self.loss(*arguments)
        loss.backward()
        return reported


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """Compile nothing in these tests, and count when it would have been done."""
    kind = type("Eager", (Eager,), {})
    monkeypatch.setattr(minibatch_update, "CompiledGradients", kind)
    monkeypatch.setattr(compiling, "WORTH_IT", 100)
    return kind


def make(model=PPO, total_env_steps=16 * 32, **settings):
    """Return model and data of rollouts of 16 steps, each updated in 2 x 2 minibatches."""
    data = RolloutDataModule("Pendulum-v1", 2, 8, rollouts_per_epoch=2, seed=1, evaluation={"episodes": 0})
    given = {"update": {"epochs": 2, "minibatch_size": 8}, "policy": {"hidden_sizes": [4]}} | settings
    torch.manual_seed(3)
    return model(data.observation_space, data.action_space, total_env_steps=total_env_steps, **given), data


def fit(model, data, **flags):
    trainer = pl.Trainer(**(OFF | {"max_epochs": 2, "limit_val_batches": 0} | flags))
    trainer.fit(model, data)
    return trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("steps", "flags", "compiled"),
    [
        (25 * 16, {}, True),  # 25 rollouts of 4 steps each
        (25 * 16 - 1, {}, False),
        (25 * 16, {"max_epochs": 1}, True),  # a piece of the same training
        (None, {"max_epochs": 12}, False),
        (None, {"max_epochs": 13}, True),  # of two rollouts
        (None, {"max_epochs": -1}, True),
        (25 * 16, {"max_steps": 99}, False),
        (25 * 16, {"max_time": {"seconds": 1}}, True),
        (None, {"max_epochs": -1, "max_time": {"seconds": 1}}, True),
        (25 * 16, {"fast_dev_run": True}, False),
    ],
)
def test_the_length_of_the_whole_training_decides(steps, flags, compiled):
    model, data = make(total_env_steps=steps)
    assert compiling.choose(model, data, pl.Trainer(**OFF | flags)).compiled == compiled


def test_a_short_time_is_a_short_run(monkeypatch):
    monkeypatch.setattr(compiling, "WORTH_IT", 50_000)
    for seconds, compiled in ((49, False), (51, True)):
        model, data = make(total_env_steps=10**9)
        trainer = pl.Trainer(**OFF, max_time={"seconds": seconds})
        assert compiling.choose(model, data, trainer).compiled == compiled


class OwnLoss(PPO):
    """Another policy loss."""

    def policy_loss(self, terms):
        return super().policy_loss(terms)


class OwnHook(PPO):
    """Nothing of this is compiled."""

    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)


class Listening(Callback):
    """Hears of backward passes."""

    def on_after_backward(self, trainer, pl_module) -> None:
        pass


class Network(nn.Linear):
    """A layer of the user's own."""


@pytest.mark.parametrize(
    ("settings", "flags", "reason"),
    [
        ({"model": OwnLoss}, {}, "code of your own"),
        ({"model": OwnHook}, {}, None),
        ({"objective": "adaptive_kl"}, {}, None),
        ({"objective": "trpo"}, {}, "trpo"),
        ({"plain": True}, {}, "plain"),
        ({"policy": {"core": "gru"}}, {}, None),
        ({}, {"callbacks": [Listening()]}, "listened"),
        ({}, {"precision": "bf16-mixed"}, None),
    ],
)
def test_what_is_known_to_work_is_compiled(settings, flags, reason):
    choice = compiling.choose(*make(**settings), pl.Trainer(**OFF | flags))
    assert (choice.compiled, choice.because) == (True, "a long run") if reason is None else reason in choice.because


def test_a_network_of_ones_own_is_left_alone():
    model, data = make()
    model.policy.network.actor_output = Network(4, 1)
    assert "your own" in compiling.choose(model, data, pl.Trainer(**OFF)).because


def test_without_a_compiler_it_stays_uncompiled(monkeypatch):
    monkeypatch.setattr(compiled_gradients, "cxx_compiler", lambda: None)
    model, data = make()
    assert "install g++" in compiling.choose(model, data, pl.Trainer(**OFF)).because


def test_each_fit_decides(compiler):
    model, data = make()
    fit(model, data)
    assert compiler.made == 1 and model.compile_update
    model.budget.total_env_steps = 10 * 16
    fit(model, data, max_epochs=4)
    assert compiler.made == 1 and not model.compile_update


def test_true_and_false_are_not_asked(compiler):
    for given, made in ((False, 0), (True, 1)):
        fit(*make(compile=given, total_env_steps=10**9 if made == 0 else 64))
        assert compiler.made == made
    with pytest.raises(ConfigError, match="compile: expected auto, true or false, got 'maybe'"):
        load([], ["compile=maybe"])
    with pytest.raises(ConfigError, match="compile: expected"):
        fit(*make(compile="maybe"))


@pytest.mark.parametrize("failure", ["at once", "later", "a hook"])
def test_what_cannot_be_compiled_goes_on_uncompiled_with_one_line(failure, compiler, caplog):
    expected, data = make(compile=False)
    fit(expected, data)
    if failure == "at once":
        compiler.fails = ZeroDivisionError("in the compiler")
    if failure == "later":
        compiler.breaks_after = 5
    model, data = make()
    if failure == "a hook":
        model.policy.network.actor_output.register_forward_hook(lambda *_: None)
    fit(model, data)
    assert [r.message.count("continues uncompiled") for r in caplog.records if r.name.startswith("lightning_ppo")] == [
        1
    ]
    torch.testing.assert_close(weights(model), weights(expected))


def test_true_fails_where_auto_goes_on(compiler):
    compiler.breaks_after = 5
    with pytest.raises(RuntimeError, match="compiles again"):
        fit(*make(compile=True))


@pytest.mark.parametrize("part", ["layer", "parameter", "anomaly"])
def test_who_listens_to_the_network_is_heard(part, compiler, caplog):
    heard = []
    model, data = make()
    if part == "layer":
        model.policy.network.actor_output.register_full_backward_hook(lambda *_: heard.append(1))
    if part == "parameter":
        next(model.policy.network.parameters()).register_hook(lambda grad: heard.append(1))
    fit(model, data, detect_anomaly=part == "anomaly")
    assert "continues uncompiled" in caplog.text and (heard or part == "anomaly")
