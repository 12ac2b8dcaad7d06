"""What settings need: every one is classified, and one that does nothing is named."""

import logging

import numpy as np
import pytest
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.settings.effects import EVERYWHERE, NEEDED, REFUSED, TOLD, covers, without_effect
from lightning_ppo.settings.loading import to_container
from lightning_ppo.settings.reference import settings
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import ConfigError, UserError
from tests.kit.envs import make_vector_env
from tests.kit.paths import ROOT
from tests.kit.training import make_trainer

KEYS = [setting.key for setting in settings()]
PATTERNS = [pattern for needed in NEEDED for pattern in needed.keys]
BOX, DISCRETE = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(2)


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_classified_once(key):
    found = [key in EVERYWHERE, key in REFUSED, any(covers(pattern, key) for pattern in PATTERNS)]
    # a case of its own may be told where it is found out, besides
    assert sum(found) == 1 or (key in TOLD and not found[0] and not found[1]), key


def test_no_setting_is_classified_that_is_none():
    assert {*EVERYWHERE, *REFUSED, *TOLD} <= set(KEYS)
    assert all(any(covers(pattern, key) for key in KEYS) for pattern in PATTERNS)


def test_the_documents_have_every_setting_that_depends_on_something():
    text = (ROOT / "docs" / "configuration.md").read_text()
    for name in (*REFUSED, *TOLD, *PATTERNS):
        assert f"`{name}`" in text, name


CASES = [
    ("env.max_restarts", 3, {}),
    ("env.atari.frame_skip", 2, {}),
    ("update.clip_range", 0.3, {"objective": "surrogate"}),
    ("update.clip_range_high", 0.3, {"objective": "trpo"}),
    ("update.kl_coefficient", 2.0, {}),
    ("update.kl_target", 0.02, {"objective": "kl_penalty"}),
    ("update.trust_region.max_kl", 0.02, {}),
    ("update.std_decay", 0.7, {"space": DISCRETE}),
    ("update.std_decay", 0.7, {"objective": "trpo"}),
    ("policy.distribution", "beta", {"space": DISCRETE}),
    ("policy.log_std_init", 0.0, {"policy": {"distribution": "beta"}}),
    ("update.noise_color", 1.0, {"policy": {"distribution": "gsde"}}),
    ("update.noise_color", 1.0, {"space": DISCRETE}),
    ("policy.layer_norm", True, {"policy": {"network": "my.Network"}}),
    ("policy.core_size", 32, {}),
    ("policy.core_layers", 2, {}),
    ("policy.core_heads", 2, {"policy": {"core": "lstm"}}),
    ("policy.core_memory", 8, {"policy": {"core": "gru"}}),
    ("policy.hidden_sizes", [8], {"policy": {"network": "my.Network"}}),
    ("normalize.observation_clip", 5.0, {"normalize": {"observations": False}}),
    ("normalize.reward_clip", 5.0, {"normalize": {"rewards": False}}),
    ("normalize.epsilon", 1e-4, {"normalize": {"observations": False, "rewards": False}}),
    ("evaluation.episodes", 3, {"env": {"id": ""}}),
]


def nested(key, value):
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def joined(one, other):
    return {
        key: joined(one[key], other[key]) if key in one and key in other else {**other, **one}[key]
        for key in {**one, **other}
    }


@pytest.mark.parametrize(("key", "value", "given"), CASES, ids=[f"{key}, {given}" for key, _, given in CASES])
def test_what_does_nothing_is_one_line_that_names_what_it_needs(key, value, given):
    space = given.get("space", BOX)
    rest = {name: part for name, part in given.items() if name != "space"}
    lines = list(without_effect(joined(nested(key, value), rest), space, False))
    assert len(lines) == 1 and lines[0].startswith(f"{key}={value} has no effect: it needs "), lines
    assert list(without_effect(rest, space, False)) == [] or "distribution" in str(rest)


def test_defaults_and_settings_that_work_have_no_line():
    assert list(without_effect(to_container(Config()), DISCRETE, False)) == []
    dictionary = spaces.Dict({"a": DISCRETE, "b": BOX})
    works = {
        "objective": "adaptive_kl",
        "update": {"kl_target": 0.02, "kl_coefficient": 3.0, "std_decay": 0.2},
        "policy": {"distribution": "tanh_gaussian", "log_std_init": 0.0, "core": "gru", "core_size": 8},
        "env": {"id": "ALE/Pong-v5", "on_error": "restart", "max_restarts": 2, "atari": {"frame_skip": 2}},
        "normalize": {"observations": False, "epsilon": 1e-3},
    }
    assert list(without_effect(works, dictionary, False)) == []
    # an objective of one's own is given every coefficient
    assert list(without_effect({"objective": "my.Objective", "update": {"kl_target": 0.02}}, BOX, False)) == []


def test_training_says_it_once(caplog):
    data = RolloutDataModule("CartPole-v1", 2, 8, rollouts_per_epoch=1, evaluation={"episodes": 0})
    policy = {"log_std_init": 0.0, "hidden_sizes": [4]}
    update = {"epochs": 1, "minibatch_size": 16}
    model = PPO(data.observation_space, data.action_space, update=update, policy=policy)
    with caplog.at_level(logging.WARNING, "lightning_ppo"):
        make_trainer(max_epochs=2).fit(model, data)
    line = "policy.log_std_init=0.0 has no effect: it needs Box actions of a Gaussian distribution"
    assert [record.message for record in caplog.records] == [line]


@pytest.mark.parametrize("backend", ["vector", "envpool"])
@pytest.mark.parametrize("setting", [{"wrappers": ["gymnasium.wrappers.TimeAwareObservation"]}, {"timeout": 1.0}])
def test_what_needs_single_copies_is_refused_where_there_are_none(backend, setting):
    with pytest.raises(ConfigError, match=r"set env\.backend to sync or async"):
        make_vector_env("CartPole-v1", 2, backend=backend, **setting)


def test_an_idle_frame_that_a_backend_cannot_do_without_is_named(caplog):
    pytest.importorskip("envpool", reason="needs the extra envpool")
    from lightning_ppo.settings.environment import AtariConfig

    with caplog.at_level(logging.WARNING, "lightning_ppo"):
        try:
            make_vector_env("ALE/Pong-v5", 1, backend="envpool", atari=AtariConfig(noop_max=0)).close()
        except UserError:
            pytest.skip("no ROMs")
    assert caplog.text.count("env.atari.noop_max=0: EnvPool draws from 1 idle frame on") == 1
