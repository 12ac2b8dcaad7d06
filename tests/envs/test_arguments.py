"""Arguments of constructors, and the time limit, which is Gymnasium's."""

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from lightning_ppo.envs.torch_envs import TorchCartPole
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import as_section
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.envs import Count, make_vector_env

NAMES = {"max_episode_steps": 7, "id": 3, "render_mode": "wide", "disable_env_checker": "no"}
VECTOR_NAMES = {"max_episode_steps": 7, "id": 3, "vectorization_mode": "mine", "wrappers": 5, "vector_kwargs": 2}


class Own(Count):
    """Its constructor has arguments of Gymnasium's names; the reward tells what it got."""

    def __init__(self, max_episode_steps=0, id=0, render_mode="", disable_env_checker="", rate=0) -> None:
        super().__init__(length=1000)
        self.got = (max_episode_steps, id, render_mode, disable_env_checker)
        self.reward = float(max_episode_steps + id + len(render_mode) + len(disable_env_checker))


class Any_(Count):
    """Takes any argument."""

    def __init__(self, **kwargs) -> None:
        super().__init__(length=kwargs.get("max_episode_steps", 1000))


class OwnVector(TorchCartPole):
    """A vector environment whose constructor has arguments of Gymnasium's names."""

    def __init__(self, num_envs, id=0, vectorization_mode="", wrappers=0, vector_kwargs=0, max_episode_steps=500):
        super().__init__(num_envs, max_episode_steps=max_episode_steps)
        self.got = (max_episode_steps, id, vectorization_mode, wrappers, vector_kwargs)


class Unlimited(VectorEnv):
    """Takes no time limit."""

    def __init__(self, num_envs) -> None:
        raise AssertionError


def lengths(env, steps=60):
    env.reset(seed=1)
    ended, found = np.zeros(env.num_envs, int), []
    for _ in range(steps):
        *_, terminations, truncations, _ = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
        ended += 1
        over = np.asarray(terminations) | np.asarray(truncations)
        found += ended[over].tolist()
        ended[over] = 0
    env.close()
    return found


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_arguments_of_the_constructor_reach_it_whatever_they_are_called(backend):
    env = make_vector_env("tests.envs.test_arguments:Own", 2, backend=backend, kwargs={**NAMES, "rate": 1})
    assert env.get_attr("got") == ((7, 3, "wide", "no"),) * 2
    env.reset(seed=0)
    assert env.step(np.zeros(2, int))[1].tolist() == [16.0, 16.0]
    env.close()


def test_arguments_of_a_vector_environment_too():
    env = make_vector_env("tests.envs.test_arguments:OwnVector", 2, kwargs=VECTOR_NAMES)
    assert env.unwrapped.got == (7, 3, "mine", 5, 2)
    with pytest.raises(ConfigError, match=r"env.kwargs.num_envs: set env.num_envs"):
        make_vector_env("tests.envs.test_arguments:OwnVector", 2, kwargs={"num_envs": 3})


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        ("Pendulum-v1", "sync"),
        ("Pendulum-v1", "async"),
        ("tests.kit.envs:Count", "sync"),
        ("tests.envs.test_arguments:Own", "sync"),
    ],
)
def test_the_time_limit_is_a_setting_of_its_own(env_id, backend):
    kwargs = {"length": 1000} if env_id.endswith("Count") else {}
    env = make_vector_env(env_id, 2, backend=backend, kwargs=kwargs, max_episode_steps=5)
    assert lengths(env, 11) == [5] * 4
    env = make_vector_env(env_id, 2, backend=backend, kwargs=kwargs, max_episode_steps=9, stagger=True)
    assert env.metadata["staggered"]
    env.close()


def test_vector_environments_of_their_own_kind_take_the_time_limit_as_their_own():
    env = make_vector_env("CartPole-v1", 3, backend="vector", max_episode_steps=4)
    assert env.unwrapped.max_episode_steps == 4
    env = make_vector_env("lightning_ppo.envs.torch_envs:TorchCartPole", 3, max_episode_steps=4)
    assert env.unwrapped.max_episode_steps == 4
    env = make_vector_env("CartPole-v1", 3, backend="vector", kwargs={"max_episode_steps": 6})
    assert env.unwrapped.max_episode_steps == 6
    with pytest.raises(ConfigError, match=r"env.max_episode_steps=4: env.kwargs.max_episode_steps is 6; leave one"):
        make_vector_env("CartPole-v1", 3, backend="vector", kwargs={"max_episode_steps": 6}, max_episode_steps=4)
    with pytest.raises(ConfigError, match=r"env.max_episode_steps: the vector environment .* takes no time limit"):
        make_vector_env("tests.envs.test_arguments:Unlimited", 3, max_episode_steps=4)
    with pytest.raises(ConfigError, match=r"env.max_episode_steps: set env.atari.max_frames"):
        make_vector_env("ALE/Pong-v5", 3, max_episode_steps=4)


def test_who_gives_gymnasiums_limit_to_a_constructor_that_has_none_is_told_where_it_belongs(caplog):
    with pytest.raises(ConfigError, match=r"the constructor of Pendulum-v1 takes no such argument; .* env.max_epi"):
        make_vector_env("Pendulum-v1", 2, kwargs={"max_episode_steps": 5})
    for _ in range(2):
        env = make_vector_env("tests.envs.test_arguments:Any_", 2, backend="sync", kwargs={"max_episode_steps": 5})
    assert lengths(env, 5) == [5, 5]
    assert (
        caplog.text.count("env.kwargs.max_episode_steps goes to the constructor of tests.envs.test_arguments:Any_") == 1
    )


def test_envpool_takes_the_time_limit():
    pytest.importorskip("envpool")
    assert max(lengths(make_vector_env("Pendulum-v1", 2, backend="envpool", max_episode_steps=5), 5)) == 5


def test_a_limit_out_of_range_and_unknown_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"env.max_episode_steps: must be at least 1 or null, got 0"):
        as_section(EnvConfig, {"max_episode_steps": 0}, "env")
    with pytest.raises(EnvironmentFault, match="unexpected keyword argument 'speed'"):
        make_vector_env("tests.envs.test_arguments:Own", 2, kwargs={"speed": 1})
