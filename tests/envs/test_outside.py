"""State that environments keep outside of themselves: it is known not to be restored, and named."""

import functools
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lightning_ppo.envs import get_env_state, set_env_state
from lightning_ppo.envs.built import remember
from tests.kit.envs import Count, make_vector_env

STEPS = 0
GENERATOR = np.random.default_rng(1)


def counter():
    """Return a function that counts its calls in a variable around it."""
    calls = 0

    def call():
        nonlocal calls
        calls += 1
        return calls

    return call


class Told(Count):
    """The reward is what `told` returns."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(self.told()), *rest


class OfClass(Told):
    """Counts in its class."""

    count = 0

    def told(self):
        OfClass.count += 1
        return self.count


class OfModule(Told):
    """Counts in its module."""

    def told(self):
        global STEPS
        STEPS += 1
        return STEPS


class OfGenerator(Told):
    """Draws from a generator of its module."""

    def told(self):
        return GENERATOR.random()


class OfClosure(Told):
    """Counts in a variable around a function."""

    def __init__(self):
        super().__init__()
        self.told = counter()


class OfDefault(Told):
    """Counts in a default argument."""

    def told(self, seen=()):
        seen.append(1)
        return len(seen)

    told.__defaults__ = ([],)


class OfFunction(Told):
    """Counts in an attribute of its method."""

    def told(self):
        OfFunction.told.calls += 1
        return OfFunction.told.calls

    told.calls = 0


class Part:
    """Counts in the class of an object of the environment."""

    made = 0

    def __init__(self):
        Part.made += 1


class OfPart(Told):
    """Makes parts."""

    def __init__(self):
        super().__init__()
        self.part = Part()

    def told(self):
        self.part = Part()
        return Part.made


def built(env_id, backend="sync"):
    env = make_vector_env(f"{__name__}:{env_id}", 2, backend=backend)
    env.reset(seed=[1, 2])
    return env


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("OfClass", "OfClass.count"),
        ("OfModule", "STEPS"),
        ("OfGenerator", "GENERATOR"),
        ("OfClosure", "counter.<locals>.call.calls"),
        ("OfDefault", "OfDefault.told.default 0"),
        ("OfFunction", "OfFunction.told.calls"),
        ("OfPart", "Part.made"),
    ],
)
def test_what_has_changed_outside_of_an_environment_is_named(env_id, name, backend):
    env = built(env_id, backend)
    assert get_env_state(env)[1] == ""
    env.step(np.zeros(2, np.int64))
    state, reason = get_env_state(env)
    env.close()
    assert state is None and f"{name} has changed, which is kept outside of the environment" in reason


class Slotted(Told):
    """Keeps its count in a slot."""

    __slots__ = ("count", "never")

    def __init__(self):
        super().__init__()
        self.count = 0

    def told(self):
        self.count += 1
        return self.count


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_slots_are_attributes(backend):
    env, other = built("Slotted", backend), built("Slotted", backend)
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    state, reason = get_env_state(env)
    assert reason == "" and set_env_state(other, state) == ""
    assert other.step(np.zeros(2, np.int64))[1].tolist() == env.step(np.zeros(2, np.int64))[1].tolist() == [4.0, 4.0]
    env.close()
    other.close()


class Innocent(Count):
    """What it has outside does not change, or tells only what was cached or warned of."""

    table = np.arange(1000.0)
    weights: ClassVar[list] = [1.0, 2.0]
    warned = False
    cache: ClassVar[dict] = {}

    def step(self, action):
        Innocent.warned = True
        Innocent.cache[self.t] = self.t
        return super().step(action)

    @functools.cached_property
    def limit(self):
        return self.length


@pytest.mark.parametrize("env_id", ["tests.envs.test_outside:Innocent", "CartPole-v1", "Acrobot-v1", "FrozenLake-v1"])
def test_what_stays_as_it_is_keeps_the_state_exact(env_id):
    env = make_vector_env(env_id, 2, backend="sync")
    env.reset(seed=[1, 2])
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    assert get_env_state(env)[1] == ""


def test_environments_that_were_built_by_hand_too():
    env = SyncVectorEnv(
        [lambda: gymnasium.wrappers.TimeLimit(OfClass(), 9)] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    remember(env)
    env.reset(seed=[1, 2])
    assert get_env_state(env)[1] == ""
    env.step(np.zeros(2, np.int64))
    assert "OfClass.count has changed" in get_env_state(env)[1]
