"""What environments return against what they declare: one answer on every backend."""

import logging
from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.declared import as_declared
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.support import notices
from lightning_ppo.support.errors import EnvironmentFault
from tests.kit.envs import Count, make_vector_env

F32 = np.float32


def pair(low, high, dtype):
    return spaces.Box(low, high, (2,), dtype)


# name: space, the observation that is right, the one that is returned from step `at` on, what is said of that
WRONG = {
    "floats as bytes": (pair(0, 255, np.uint8), np.uint8([0, 1]), F32([0.25, 0.75]), "0.25"),
    "beyond bytes": (pair(0, 255, np.uint8), np.uint8([0, 1]), np.int64([3, 300]), "300"),
    "beyond discrete": (spaces.Discrete(3), 0, 4, "4"),
    "before discrete": (spaces.Discrete(3, start=5), 5, 4, "4"),
    "half a choice": (spaces.Discrete(3), 0, 0.5, "0.5"),
    "beyond multi discrete": (spaces.MultiDiscrete([3, 2]), np.int64([2, 1]), np.int64([1, 2]), "2"),
    "no bit": (spaces.MultiBinary(2), np.int8([1, 0]), np.int8([0, 2]), "2"),
    "in a dict": (
        spaces.Dict({"a": spaces.Box(-1, 1, (1,), F32), "b": spaces.Discrete(2)}),
        {"a": F32([0.0]), "b": 1},
        {"a": F32([0.0]), "b": 2},
        "2",
    ),
}


class Returns(Count):
    """Returns the right observation until step `at`, and then the wrong one."""

    def __init__(self, kind: str, at: int = 0, length: int = 1000) -> None:
        super().__init__(length)
        self.observation_space, self.right, self.wrong, _ = WRONG[kind]
        self.at = at

    def _observation(self):
        return self.wrong if self.t >= self.at else self.right


class Batched(VectorEnv):
    """Two copies of `Returns` in arrays, or tensors, of whatever dtype the observations have; copy 1 is wrong."""

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, kind: str, tensors: bool = False, at: int = 0, num_envs: int = 2) -> None:
        self.num_envs, self.tensors, self.at = num_envs, tensors, at
        self.single_observation_space, self.right, self.wrong, _ = WRONG[kind]
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def _shown(self):
        second = self.wrong if self.t >= self.at else self.right

        def both(a, b):
            if isinstance(a, dict):
                return {key: both(a[key], b[key]) for key in a}
            stacked = np.stack((np.asarray(a), np.asarray(b)))
            return torch.from_numpy(stacked) if self.tensors else stacked

        return both(self.right, second)

    def reset(self, **kwargs):
        self.t = 0
        return self._shown(), {}

    def step(self, actions):
        self.t += 1
        zeros = torch.zeros(2) if self.tensors else np.zeros(2)
        never = zeros != 0.0
        return self._shown(), zeros, never, never, {"final_obs": self._shown()} if self.tensors else {}


def train(env, num_steps=8):
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    return Collector(env, policy, num_steps, torch.Generator().manual_seed(0), [1, 2]).collect()


def build(kind, backend, at):
    if backend in ("arrays", "tensors"):
        return Batched(kind, backend == "tensors", at)
    return make_vector_env("tests.envs.test_declared:Returns", 2, backend=backend, kwargs={"kind": kind, "at": at})


@pytest.mark.parametrize("at", [0, 1, 6])
@pytest.mark.parametrize("backend", ["sync", "async", "arrays", "tensors"])
@pytest.mark.parametrize("kind", WRONG)
def test_values_without_meaning_are_one_line_that_names_copy_value_step_and_space(kind, backend, at):
    if backend == "async" and at == 6 and kind != "floats as bytes":
        pytest.skip("like sync from here on")
    env = build(kind, backend, at)
    with pytest.raises(EnvironmentFault) as fault:
        train(env)
    message = str(fault.value)
    assert "\n" not in message
    if "dtype" in message and "before" in message:  # the kind of numbers has changed in mid-episode
        assert f"at step {at}, " in message
    else:
        space, *_, value = WRONG[kind]
        leaf = space["b"] if isinstance(space, spaces.Dict) else space
        assert message.startswith(f"env {0 if backend in ('sync', 'async') else 1} returned the observation {value} ")
        assert str(leaf) in message and (f"step {at}" in message or f"reset {at}" in message)
    env.close()


@pytest.mark.parametrize("backend", ["sync", "arrays", "tensors"])
def test_an_evaluation_notices_too(backend):
    env = build("beyond discrete", backend, 10)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    with pytest.raises(EnvironmentFault, match=r"returned the observation 4 at step 16 of this process, outside Discr"):
        play(policy, env, 2, seeds=[0, 1])


@pytest.mark.parametrize("kind", ["beyond discrete", "floats as bytes", "before discrete"])
def test_a_copy_that_shows_what_it_must_not_is_replaced_where_that_is_asked_for(kind, caplog):
    env = make_vector_env(
        "tests.envs.test_declared:Returns", 2, backend="sync", kwargs={"kind": kind, "at": 6}, max_restarts=5
    )
    rollout = train(env, 16)
    assert rollout.valid.logical_not().sum() == 4  # both copies in steps 6 and 13
    assert "it was replaced" in caplog.text


class Narrow(Count):
    """Float64 for a Box of float32, a list of its numbers, integers, or values beyond its bounds."""

    def __init__(self, kind: str) -> None:
        super().__init__(1000)
        self.kind, self.observation_space = kind, spaces.Box(-1.0, 1.0, (2,), F32)

    def _observation(self):
        x = 0.1 if self.t % 2 else -0.1
        return {
            "double": np.array([x, 0.1]),
            "list": [x, 0.1],
            "beyond": F32([x, 7.0]),
            "rounding": F32([1.0 + 2e-6, x]),
            "half": np.float16([x, 0.1]),
        }[self.kind]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("double", "env 0 returned observations in reset 0 of dtype float64: they are rounded to that of Box(-1.0"),
        ("list", "env 0 returned observations in reset 0 of dtype float64: they are rounded"),
        ("beyond", "env 0 returned the observation 7 at step 0 of this process, outside Box(-1.0, 1.0, (2,), float32)"),
        ("rounding", ""),
        ("half", ""),
    ],
)
def test_what_keeps_its_meaning_is_learnt_from_and_said_once(kind, backend, said, caplog):
    env = make_vector_env("tests.envs.test_declared:Narrow", 3, backend=backend, kwargs={"kind": kind})
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    collector = Collector(env, policy, 8, torch.Generator().manual_seed(0), [1, 2, 3])
    seen = collector.collect().observations
    collector.collect()
    play_env = make_vector_env("tests.envs.test_declared:Narrow", 1, backend="sync", kwargs={"kind": kind})
    make_stepper(play_env, "auto", [1])
    assert seen.dtype == torch.float32 and seen[0].abs().max() > 0.09
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == bool(said) and (not said or lines[0].startswith(said))
    env.close()


class Integers(Count):
    """Shows the bounds of a Box of integers in turn, or a value beyond them."""

    def __init__(self, dtype: str, beyond: bool = False) -> None:
        super().__init__(1000)
        self.observation_space, self.beyond = spaces.Box(3, 11, (2,), np.dtype(dtype)), beyond

    def _observation(self):
        return np.array([3, 12 if self.beyond else 11], self.observation_space.dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_bounds_of_integers_of_any_width_hold(dtype, beyond, backend, caplog):
    kwargs = {"dtype": dtype, "beyond": beyond}
    env = make_vector_env("tests.envs.test_declared:Integers", 2, backend=backend, kwargs=kwargs)
    seen = train(env).observations
    assert (seen[..., 0] == 3).all() and (seen[..., 1] == (12 if beyond else 11)).all()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == beyond and all("returned the observation 12 " in line and dtype in line for line in lines)
    env.close()


def test_integers_of_another_width_and_whole_floats_are_what_was_declared():
    space = spaces.Dict({"image": pair(0, 255, np.uint8), "bits": spaces.MultiBinary(2), "n": spaces.Discrete(5)})
    shown = {"image": np.int64([0, 255]), "bits": np.array([True, False]), "n": np.float32(3.0)}
    found, problem, note = as_declared(space, shown)
    assert problem is None and note == ""
    assert [found["image"].dtype, found["bits"].dtype, found["n"].dtype] == [np.uint8, np.int8, np.int64]
    assert [found["image"].tolist(), found["bits"].tolist(), int(found["n"])] == [[0, 255], [1, 0], 3]


class Misshapen(Count):
    """Its observations have another structure than its space."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        box = spaces.Box(-1.0, 1.0, (), F32)
        self.observation_space, self.shown = {
            "a dict for a Box": (box, {"x": F32(0.0)}),
            "a dict for a Discrete": (spaces.Discrete(2), {"x": 1}),
            "an array for a dict": (spaces.Dict({"x": box}), F32(0.0)),
            "an array for a tuple": (spaces.Tuple((box, box)), F32([0.0, 0.0])),
            "a dict in a dict": (spaces.Dict({"x": box}), {"x": {"y": F32(0.0)}}),
            "a missing entry": (spaces.Dict({"x": box, "y": box}), {"x": F32(0.0)}),
            "nothing": (box, None),
            "ragged lists": (pair(-1.0, 1.0, F32), [[0.0], [0.0, 1.0]]),
            "text": (pair(-1.0, 1.0, F32), ["a", "b"]),
        }[kind]

    def _observation(self):
        return self.shown


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a dict for a Box", "an observation of type dict from reset 0, but its observation space is Box("),
        ("a dict for a Discrete", "an observation of type dict from reset 0, but its observation space is Discrete(2)"),
        ("an array for a dict", "an observation of type float32 from reset 0, but its observation space is a dict"),
        ("an array for a tuple", "an observation of type ndarray from reset 0, but its observation space is a tuple"),
        ("a dict in a dict", "an observation of type dict in the entry x from reset 0, but its observation space is B"),
        ("a missing entry", "an observation without the entry y from reset 0"),
        ("nothing", "an observation of dtype object from reset 0, expected Box("),
        ("ragged lists", "an observation of type list from reset 0, but its observation space is Box("),
        ("text", "an observation of dtype <U1 from reset 0, expected Box("),
    ],
)
def test_another_structure_is_one_line(kind, said, backend):
    env = make_vector_env("tests.envs.test_declared:Misshapen", 2, backend=backend, kwargs={"kind": kind})
    with pytest.raises(EnvironmentFault) as fault:
        make_stepper(env, "auto", [1, 2])
    assert str(fault.value).startswith(f"env 0 returned {said}") and "\n" not in str(fault.value)
    env.close()


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(
    ("declared", "shown", "said"),
    [
        ("in a dict", "beyond multi discrete", "type .*, but its observation space is a dict"),
        ("beyond multi discrete", "in a dict", r"type dict .*, but its observation space is Box\("),
        ("in a dict", "beyond discrete", "type .*, but its observation space is a dict"),
    ],
)
def test_another_structure_of_a_vector_environment_is_one_line(declared, shown, said, tensors):
    env = Batched(shown, tensors)
    other = Batched(declared)
    env.single_observation_space, env.observation_space = other.single_observation_space, other.observation_space
    with pytest.raises(EnvironmentFault, match=r"^the environment returned an observation of ") as fault:
        make_stepper(env, "auto", [1])
    assert "at step 0" in str(fault.value)


def test_the_notices_are_forgotten_between_tests():
    assert not notices._said
