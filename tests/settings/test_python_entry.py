"""What people hand in from Python: classes, objects; and environments that nobody reaches."""

import functools
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from torch import nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import as_section
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.policy_objectives import PolicyObjective
from tests.kit.envs import Count, make_vector_env
from tests.kit.training import make_pair, make_trainer

# ---------------------------------------------------------------- classes and objects


class Encoder(nn.Module):
    """Doubles the observation's features."""

    def __init__(self, space, factor=2):
        super().__init__()
        self.num_features = 8
        self.layer = nn.Linear(space.shape[0], 8)
        self.factor = factor

    def forward(self, inputs):
        return self.factor * self.layer(inputs)


class Doubled(gymnasium.RewardWrapper):
    """Rewards times two."""

    def reward(self, reward):
        return 2.0 * reward


class Plain(PolicyObjective):
    """The surrogate without a bound."""

    def forward(self, terms, coefficients):
        return -terms.advantages * terms.log_ratios.exp()


def test_classes_stand_for_their_paths(tmp_path):
    model, data = make_pair(policy={"encoder": Encoder}, objective=Plain)
    assert model.hparams["policy"]["encoder"] == "tests.settings.test_python_entry.Encoder"
    trainer = make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = PPO.load_from_checkpoint(tmp_path / "last.ckpt")
    assert type(loaded.policy.network.actor_trunk.encoder) is Encoder and type(loaded.objective) is Plain
    observations = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(loaded.policy.predict(observations)[0], model.policy.predict(observations)[0])


def test_functions_partials_and_built_modules_make_networks(tmp_path):
    space = spaces.Box(-1, 1, (4,))
    built = Encoder(space)
    for encoder, factor in (
        (functools.partial(Encoder, factor=3), 3),
        (lambda space: Encoder(space, 4), 4),
        ({"class_path": Encoder, "init_args": {"factor": 5}}, 5),
        (built, 2),
    ):
        policy = ActorCritic(space, spaces.Discrete(2), PolicyConfig(encoder=encoder))
        trunks = policy.network.actor_trunk, policy.network.critic_trunk
        assert [trunk.encoder.factor for trunk in trunks] == [factor, factor]
        assert trunks[0].encoder is not trunks[1].encoder and trunks[0].encoder is not built
    model, data = make_pair(policy={"encoder": built})
    with pytest.warns(UserWarning, match=r"plain data only, so policy\.encoder \(Encoder\) is left out"):
        make_trainer().fit(model, data)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (Count, r"tests\.kit\.envs\.Count is no torch\.Module"),
        (lambda space: "nothing", "makes a str, expected a Module"),
        (3, "expected a class path, a class, or class_path with init_args, got 3"),
        (lambda: None, "could not be built"),
    ],
)
def test_what_makes_no_network_is_one_line(encoder, said):
    with pytest.raises(ConfigError, match=f"^policy.encoder: .*{said}") as caught:
        ActorCritic(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), PolicyConfig(encoder=encoder))
    assert "\n" not in str(caught.value)


class Shop(Count):
    """Keeps what its constructor gets."""

    def __init__(self, table=None, price=None, shape=None, kind=None):
        super().__init__()
        self.table, self.price, self.shape, self.kind = table, price, shape, kind
        self.level = 1


class Settings:
    """Anything."""


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_constructors_get_objects_as_they_are(backend, tmp_path):
    table, kwargs = np.arange(6.0), {"price": lambda x: 2 * x, "shape": (3, {4: "four"}), "kind": Settings}
    data = RolloutDataModule(
        "tests.settings.test_python_entry:Shop",
        num_envs=2,
        num_steps=8,
        backend=backend,
        env_kwargs={"table": table, **kwargs},
    )
    (found, _), (shape, _) = (data.env.get_attr(name) for name in ("table", "shape"))
    np.testing.assert_array_equal(found, table)
    assert shape == (3, {4: "four"})
    if backend == "sync":
        own = data.env.envs[0].unwrapped
        assert own.table is table and own.price(3) == 6 and own.kind is Settings
    model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 16, "epochs": 1})
    trainer = make_trainer()
    with pytest.warns(UserWarning, match=r"so env\.kwargs\.table \(ndarray\), env\.kwargs\.price \(function\), env"):
        trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved["env"]["kwargs"] == {"shape": (3, {4: "four"})}
    data.teardown("fit")


def test_settings_from_python_are_copied_and_checked():
    kwargs = {"list": [1, 2]}
    made = as_section(EnvConfig, {"kwargs": kwargs, "num_envs": np.int64(3), "wrappers": [Doubled]}, "env")
    kwargs["list"].append(3)
    assert (made.kwargs, made.num_envs) == ({"list": [1, 2]}, 3)
    assert made.wrappers == ["tests.settings.test_python_entry.Doubled"]
    assert as_section(PolicyConfig, {"hidden_sizes": np.array([4, 5])}, "policy").hidden_sizes == [4, 5]
    for section, value, said in (
        (EnvConfig, {"num_envs": Settings()}, r"env\.num_envs: .*Settings"),
        (EnvConfig, {"kwargs": 3}, r"env\.kwargs: expected a mapping, got 3"),
        (EnvConfig, {"wrappers": "one"}, r"env\.wrappers: expected a list, got 'one'"),
        (PolicyConfig, {"activation": nn.ReLU}, r"policy\.activation: "),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            as_section(section, value, said.partition("\\")[0])
        assert "\n" not in str(caught.value)


def test_wrappers_may_be_classes_and_functions():
    env = make_vector_env(
        "tests.settings.test_python_entry:Shop", 2, backend="sync", wrappers=[Doubled, lambda env: Doubled(env)]
    )
    env.reset(seed=1)
    rewards = env.step(env.action_space.sample())[1]
    plain = make_vector_env("tests.settings.test_python_entry:Shop", 2, backend="sync")
    plain.reset(seed=1)
    np.testing.assert_array_equal(rewards, 4 * plain.step(plain.action_space.sample())[1])


# ---------------------------------------------------------------- environments in other processes


class Raises(pl.Callback):
    """Makes the task harder after the first iteration."""

    def on_train_batch_end(self, trainer, module, *args):
        trainer.datamodule.env.set_attr("level", 1 + module.iterations)


def shop(**kwargs):
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule(
        "tests.settings.test_python_entry:Shop", num_envs=2, num_steps=8, rollouts_per_epoch=2, **kwargs
    )
    return PPO(data.observation_space, data.action_space, update={"minibatch_size": 16, "epochs": 1}), data


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_attributes_reach_every_copy(backend):
    model, data = shop(backend=backend)
    seen = []

    class Looks(Raises):
        def on_train_end(self, trainer, module):
            seen.append(trainer.datamodule.env.get_attr("level"))

    make_trainer(callbacks=[Looks()]).fit(model, data)
    assert seen == [(3, 3)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"overlap": True}, r"would reach none of the environments .*; set rollout\.overlap=false"),
        ({"processes": 2}, r"would reach 1 of 2 environments .*; set rollout\.processes=1"),
    ],
)
def test_some_of_all_copies_are_not_shown(settings, said):
    env = shop(backend="sync", **settings)[1].env
    for ask in (lambda: env.get_attr("level"), lambda: env.call("reset"), lambda: env.envs):
        with pytest.raises(ConfigError, match=said) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_settings_objects_arrive_as_they_are_and_single_settings_replace_theirs():
    env, rollout = EnvConfig("CartPole-v1", 4), RolloutConfig(num_steps=32, gamma=0.9)
    data = RolloutDataModule(env, rollout=rollout)
    assert data.env_settings is env and data.rollout_settings is rollout
    data = RolloutDataModule(env, num_envs=2, rollout=rollout, num_steps=8)
    assert data.env_settings == replace(env, num_envs=2)
    assert data.rollout_settings == replace(rollout, num_steps=8)
    with pytest.raises(ConfigError, match=r"rollout\.gama"):
        RolloutDataModule(env, rollout={"gama": 0.9})
