"""`plain=true`: no shortcut runs, in any process, and what is learnt is the same to float tolerance."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

import lightning_ppo.speed
from lightning_ppo import PPO
from lightning_ppo.collection import numpy_acting
from lightning_ppo.collection.remote import RemoteCollector
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.images import NatureCNN
from lightning_ppo.run.training import train
from lightning_ppo.settings.loading import load
from lightning_ppo.speed import switch
from lightning_ppo.support.errors import ConfigError
from tests.kit.memory import TRANSFORMER, make_pair
from tests.kit.ranks import distance, launch
from tests.kit.training import make_trainer

SPEED = Path(lightning_ppo.speed.__file__).parent
NO_SHORTCUTS = ("switch.py", "internals.py", "hardware.py", "light_lightning.py", "waiting.py")
"""The switch, names that are not public, choices of threads, device and precision, and what is imported."""
SHORTCUTS = {str(path) for path in SPEED.glob("*.py") if path.name not in NO_SHORTCUTS} | {numpy_acting.__file__}

TASKS = {
    "discrete": ("CartPole-v1", {"core": None}),
    "continuous": ("Pendulum-v1", {"core": None, "layer_norm": True}),
    "lstm": ("CartPole-v1", {}),
    "gru": ("Pendulum-v1", {"core": "gru"}),
    "transformer": ("CartPole-v1", TRANSFORMER),
}


@pytest.fixture(autouse=True)
def _shortcuts_are_back_afterwards():
    yield
    switch.turn(True)


@contextmanager
def shortcuts_that_run():
    """Yield the names of all functions of `speed`, and of acting in NumPy, that are called meanwhile."""
    called = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename in SHORTCUTS:
            called.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)


def learn(task: str, plain: bool, precision: str) -> PPO:
    env, policy = TASKS[task]
    update = {"epochs": 2, "sequence_length": 8 if policy.get("core", "lstm") else None, "noise_color": 1.0}
    model, data = make_pair(env, 2, PPO, policy=policy, update=update, normalize={"rewards": True}, plain=plain)
    make_trainer(precision=precision, max_epochs=3).fit(model, data)
    return model


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2e-5), ("64-true", 1e-11)])
@pytest.mark.parametrize("task", TASKS)
def test_weights_are_the_same_without_shortcuts(task, precision, tolerance):
    fast, plain = learn(task, False, precision), learn(task, True, precision)
    assert fast.iterations == plain.iterations == 3
    for (name, one), other in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.ranks
def test_two_ranks_learn_the_same_without_shortcuts(tmp_path):
    fast, plain = (launch(tmp_path / name, 2, "CartPole-v1", name, "64-true") for name in ("", "plain"))
    for one, other in zip(fast, plain, strict=True):
        for states, others in zip(one["states"][:5], other["states"][:5], strict=True):
            assert distance(states, others) < 1e-10


@pytest.mark.parametrize("policy", [[], ["policy.core=lstm"], ["policy.core=gru"]], ids=str)
def test_no_shortcut_runs(policy, tmp_path):
    settings = ["total_env_steps=64", "env.num_envs=4", "rollout.num_steps=16", "update.minibatch_size=32", *policy]
    settings += ["normalize.rewards=true", "evaluation.episodes=2", "evaluation.final_episodes=2"]
    settings += ["trainer.enable_progress_bar=false"]
    called = {}
    for plain in ("false", "true"):
        config = load([], [*settings, f"plain={plain}", f"run_dir={tmp_path / plain}"])
        with shortcuts_that_run() as called[plain]:
            train(config)
    assert called["true"] == set()
    expected = {"bare_step", "log_metrics", "keep_freed_memory", "pays", "nobody_listens"}
    assert called["false"] >= expected | {"_act"}
    assert ("run_on_host" in called["false"]) == (policy == ["policy.core=gru"])


def test_a_checkpoint_of_one_is_that_of_the_other(tmp_path):
    """Adam's state has one form, and what the fused step needs is no part of it."""

    def fit(plain, epochs, resume=None):
        model, data = make_pair("CartPole-v1", 1, PPO, plain=plain)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{plain}.ckpt")
        return model

    whole = fit(False, 2)
    fit(False, 1)
    resumed = fit(True, 2, tmp_path / "False.ckpt")
    fit(True, 1)
    back = fit(False, 2, tmp_path / "True.ckpt")
    for model in (resumed, back):
        for one, other in zip(whole.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def tell() -> None:
    raise ConfigError(f"shortcuts: {switch.is_on()}")


@pytest.mark.parametrize("on", [True, False])
def test_processes_that_collect_do_as_this_one(on):
    switch.turn(on)
    remote = RemoteCollector(tell, ActorCritic(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)))
    remote.begin()
    with pytest.raises(ConfigError, match=f"shortcuts: {on}"):
        remote.finish()
    remote.kill()


def test_a_fit_takes_the_switch_of_its_own_model():
    for plain in (True, False):
        model, data = make_pair("CartPole-v1", model=PPO, plain=plain)
        other = PPO(data.observation_space, data.action_space, plain=not plain)
        make_trainer().fit(model, data)
        assert switch.is_on() is not plain and other.plain is not plain


def test_pictures_give_the_same_features_however_they_lie_in_memory():
    encoder, images = NatureCNN((4, 84, 84)), torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    fast = encoder(images)
    switch.turn(False)
    torch.testing.assert_close(encoder(images), fast, rtol=1e-4, atol=1e-5)


def test_a_compiled_update_is_a_shortcut():
    refusal = "plain: compile=true is one of the shortcuts"
    with pytest.raises(ConfigError, match=refusal):
        load([], ["plain=true", "compile=true"])
    model, data = make_pair("CartPole-v1", model=PPO, plain=True, compile=True)
    with pytest.raises(ConfigError, match=refusal):
        make_trainer().fit(model, data)
