"""Environments that do what users' environments do, and what becomes of it."""

import threading

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo.collection.collector import Collector
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.support.errors import EnvironmentFault, UnsupportedSpaceError
from tests.kit.envs import Count, make_vector_env

HERE = "tests.envs.test_odd_environments"
F32 = np.float32


def collect(env_id, backend="sync", num_steps=11, **settings):
    env = make_vector_env(f"{HERE}:{env_id}", 2, backend=backend, **settings)
    try:
        policy = ActorCritic(env.single_observation_space, env.single_action_space)
        collector = Collector(env, policy, num_steps, torch.Generator().manual_seed(0), [1, 2])
        return collector.collect(), collector.collect()
    finally:
        env.close()


class OneBuffer(Count):
    """Writes every observation into the same dict of the same array."""

    def __init__(self):
        super().__init__(end="trunc")
        self.observation_space = spaces.Dict(a=spaces.Box(-1, 100, (1,)), n=spaces.Discrete(100))
        self.shown = {"a": np.zeros(1, F32), "n": 0}

    def _observation(self):
        self.shown["a"][:] = self.t
        self.shown["n"] = self.t
        return self.shown


class RingView(Count):
    """Shows a part of an array that it goes on writing to, and that nobody else may write to."""

    def __init__(self):
        super().__init__(end="trunc")
        self.ring = np.zeros(8, F32)

    def _observation(self):
        self.ring[:] = self.t
        shown = self.ring[2:3]
        shown.flags.writeable = False
        return shown


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("env_id", ["OneBuffer", "RingView"])
def test_what_is_shown_is_kept_although_its_memory_is_written_to_again(env_id, backend):
    rollouts = collect(env_id, backend)
    seen = [rollout.observations for rollout in rollouts]
    steps = torch.cat([x["a"] if env_id == "OneBuffer" else x for x in seen])[:, 0, 0].tolist()
    assert steps == [step % 4 for step in range(22)]
    if env_id == "OneBuffer":
        assert torch.cat([x["n"] for x in seen])[:, 0].tolist() == steps
    for rollout in rollouts:  # the last observations of the episodes, and of the rollout
        last = rollout.final_observations()
        assert set((last["a"] if env_id == "OneBuffer" else last).flatten().tolist()) == {4.0}


class Says(Count):
    """Has something in its infos."""

    def __init__(self, kind):
        super().__init__(end="trunc")
        self.kind = kind

    def _info(self):
        return {
            "final_obs": {"final_obs": F32([77.0])},
            "both": {"final_obs": 3, "final_info": {}},
            "lock": {"lock": threading.Lock(), "f": lambda: 1},
            "numbers": {1: 2, "_x": True, "x": 1, "episode": {"r": 1}},
        }[self.kind]

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], self._info()

    def step(self, action):
        return (*super().step(action)[:-1], self._info())


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(("kind", "lines"), [("final_obs", 1), ("both", 1), ("numbers", 0)])
def test_infos_of_a_copy_do_not_take_the_place_of_those_of_the_vector_environment(kind, lines, backend, caplog):
    for rollout in collect("Says", backend, kwargs={"kind": kind}):
        assert set(rollout.final_observations().flatten().tolist()) == {4.0}
    said = [line for line in caplog.messages if "names of the vector environment's own: left out" in line]
    assert len(said) == lines and all(line.startswith("env 0 has final_") for line in said)


def test_infos_may_hold_anything_within_one_process():
    collect("Says", kwargs={"kind": "lock"})


class Leaves(Count):
    """Calls `sys.exit`, as windows do that are closed."""

    def __init__(self, where, code=0):
        if where == "build":
            raise SystemExit(code)
        super().__init__()
        self.where = where

    def reset(self, **kwargs):
        if self.where == "reset":
            raise SystemExit
        return super().reset(**kwargs)

    def step(self, action):
        if self.where == "step" and self.t == 2:
            raise SystemExit
        return super().step(action)


@pytest.mark.parametrize("where", ["build", "reset", "step"])
def test_an_environment_that_exits_is_a_fault_and_ends_no_process(where):
    said = "could not be built" if where == "build" else f"env 0 raised in {where}"
    with pytest.raises(EnvironmentFault, match=f"{said}.*: SystemExit: "):
        collect("Leaves", kwargs={"where": where})


def test_one_that_exits_is_replaced_where_that_is_asked_for(caplog):
    collect("Leaves", kwargs={"where": "step"}, max_restarts=100)
    assert "it was replaced" in caplog.text


class Odd(Count):
    """Has properties that raise, and attributes of any name."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    @property
    def action_masks(self):
        """Raise, as what is not there yet does."""
        raise RuntimeError("not yet")

    def __getattr__(self, name):
        if name.startswith("__") or self.__dict__.get("kind") != "any name":
            raise AttributeError(name)
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("kind", ["properties", "any name"])
def test_attributes_that_raise_or_answer_to_any_name(kind, backend):
    (rollout, _) = collect("Odd", backend, kwargs={"kind": kind})
    assert set(rollout.episodes.returns.tolist()) == {4.0}


class Shows(Count):
    """Shows arrays of another kind than it declares."""

    def __init__(self, kind):
        super().__init__()
        self.observation_space = spaces.Box(-1, 100, (1, 2))
        self.kind = kind

    def _observation(self):
        x = F32([[self.t, 9.0]])
        return {
            "masked": lambda: np.ma.masked_array(x, [[False, True]]),
            "nothing masked": lambda: np.ma.masked_array(x),
            "big endian": lambda: x.astype(">f4"),
            "strided": lambda: np.repeat(x, 2, 1)[:, ::2],
            "tensor": lambda: torch.from_numpy(x),
        }[self.kind]()


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("kind", ["masked", "nothing masked", "big endian", "strided", "tensor"])
def test_arrays_of_other_kinds(kind, backend):
    if kind == "masked":
        with pytest.raises(EnvironmentFault, match=r"^env 0 returned an observation with masked numbers from reset 0"):
            collect("Shows", backend, kwargs={"kind": kind})
        return
    rollout, _ = collect("Shows", backend, kwargs={"kind": kind})
    assert rollout.observations[:5, 0, 0].tolist() == [[float(t % 4), 9.0] for t in range(5)]


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (0,)), spaces.Dict(a=spaces.Box(-1, 1, (0, 3)))])
def test_actions_without_components_are_refused(space):
    with pytest.raises(UnsupportedSpaceError, match="has no components"):
        make_action_head(space)
