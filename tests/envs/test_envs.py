"""Vector environments: how they are built, seeded, and put back into an exact state."""

import itertools
import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lightning_ppo.envs import autoreset_mode, get_env_state, set_env_state
from lightning_ppo.envs.processes import ProcessVectorEnv
from lightning_ppo.envs.stagger import FirstEpisodeLimit, is_staggered
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from lightning_ppo.support.randomness import PURPOSES, derive_seeds
from tests.kit.envs import Count, Engine, make_vector_env, vector
from tests.kit.resuming import assert_resumes, play, reloaded


class Renderer(gymnasium.Env):
    """Gymnasium's own way of saying that a package is missing."""

    def __init__(self):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed, run `pip install gymnasium[mujoco]`")


class OwnState(Engine):
    """Knows how to save itself, in spite of its engine."""

    def get_state(self):
        return {"t": self.t}

    def set_state(self, state):
        self.t = state["t"]


class OwnArrayState(OwnState):
    """Saves itself as a NumPy array."""

    def get_state(self):
        return {"t": np.array([self.t, 7])}

    def set_state(self, state):
        self.t = int(state["t"][0])


class Containers(Count):
    """Keeps constants, numbers and arrays inside containers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.spaces = [spaces.Discrete(2), spaces.Discrete(3)]
        self.hooks = {"fault": fault}
        self.history = {"steps": [np.zeros(1)], "last": (0, None)}

    def step(self, action):
        self.history["steps"].append(np.array([self.t + 0.5]))
        self.history["last"] = (self.t, np.float32(self.t))
        return super().step(action)


class OtherDtype(Count):
    """Holds integers after a reset and fractions after a step, as Acrobot does with float32 and float64."""

    def reset(self, **kwargs):
        self.position = np.zeros(1, dtype=np.int64)
        return super().reset(**kwargs)

    def step(self, action):
        self.position = self.position + 0.5
        observation, _, *rest = super().step(action)
        return observation, float(self.position[0]), *rest


class Mover(Count):
    """Moves by writing into one array."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.position = np.zeros(1)

    def reset(self, **kwargs):
        self.position[:] = 0.0
        return super().reset(**kwargs)

    def step(self, action):
        self.position += 0.5
        observation, _, *rest = super().step(action)
        return observation, float(self.position[0]), *rest


class View(Count):
    """Writes into one array and reads through a view of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.buffer = np.zeros(2)
        self.position = self.buffer[1:]

    def reset(self, **kwargs):
        self.buffer[:] = 0.0
        return super().reset(**kwargs)

    def step(self, action):
        self.buffer += 0.5
        observation, _, *rest = super().step(action)
        return observation, float(self.position[0]), *rest


class Restart(Count):
    """Starts every episode from one array, which it must not write to."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.start = np.zeros(1)

    def reset(self, **kwargs):
        self.position = self.start
        return super().reset(**kwargs)

    def step(self, action):
        self.position = self.position + 0.5
        observation, _, *rest = super().step(action)
        return observation, float(self.position[0]), *rest


class Careless(Count):
    """Observes what the global generators give, whatever its seed."""

    def _observation(self):
        return np.array([random.random() + np.random.random() + float(torch.rand(()))], dtype=np.float32)


def test_copies_in_processes_that_ignore_their_seeds_differ(build):
    def first():
        np.random.seed(3)
        return build("tests.envs.test_envs:Careless", 3, backend="async").reset(seed=[1, 2, 3])[0].flatten().tolist()

    seen = first()
    assert len(set(seen)) == 3 and first() == seen


@pytest.fixture
def build():
    """Return `make_vector_env`, whose environments are closed after the test."""
    built = []

    def build_env(*args, **kwargs):
        built.append(make_vector_env(*args, **kwargs))
        return built[-1]

    yield build_env
    for env in built:
        env.close()


def fault(*args, **kwargs):
    """Return the message of the fault that `make_vector_env` raises."""
    with pytest.raises(EnvironmentFault) as caught:
        make_vector_env(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# building


@pytest.mark.parametrize(
    ("env_id", "backend", "expected"),
    [
        ("CartPole-v1", "auto", CartPoleVectorEnv),
        ("CartPole-v1", "vector", CartPoleVectorEnv),
        ("CartPole-v1", "sync", SyncVectorEnv),
        ("Pendulum-v1", "auto", SyncVectorEnv),
        ("tests.kit.envs:Count", "auto", SyncVectorEnv),
        ("tests.kit.envs:Count", "async", ProcessVectorEnv),
    ],
)
def test_backend(build, env_id, backend, expected):
    env = build(env_id, 2, backend=backend)
    assert type(env) is expected
    assert env.num_envs == 2


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_import_path_and_constructor_arguments(build, backend):
    env = build("tests.kit.envs:Count", 2, backend=backend, kwargs={"length": 2, "end": "trunc", "reward": 5.0})
    observations, _ = env.reset(seed=[0, 1])
    assert observations.tolist() == [[0.0], [0.0]]
    observations, rewards, terminations, truncations, _ = env.step(np.array([0, 1]))
    assert (observations.tolist(), rewards.tolist()) == ([[1.0], [1.0]], [5.0, 5.0])
    assert not (terminations | truncations).any()
    _, _, terminations, truncations, _ = env.step(np.array([0, 1]))
    assert (terminations.tolist(), truncations.tolist()) == ([False, False], [True, True])


def test_constructor_arguments_reach_a_native_implementation(build):
    # the reward of Sutton and Barto is 0 until the pole falls, the default one is 1
    env = build("CartPole-v1", 2, kwargs={"sutton_barto_reward": True})
    env.reset(seed=0)
    assert isinstance(env, CartPoleVectorEnv)
    assert env.step(np.array([0, 1]))[1].tolist() == [0.0, 0.0]


def test_import_path_of_a_module_that_registers_an_id(build, monkeypatch):
    spec = EnvSpec(id="Registered-v0", entry_point=Count, kwargs={"length": 1})
    monkeypatch.setitem(gymnasium.registry, "Registered-v0", spec)
    env = build("tests.kit.envs:Registered-v0", 1)
    env.reset(seed=0)
    assert env.step(np.array([0]))[2].tolist() == [True]


@pytest.mark.parametrize(
    ("env_id", "nearest"),
    [
        ("CartPoll-v1", "CartPole-v1"),
        ("CartPole-v9", "CartPole-v"),
        ("pendulum-v1", "Pendulum-v1"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("nobody/CartPole-v1", "CartPole-v1"),
        ("Cart Pole", "CartPole-v"),
    ],
)
def test_unknown_id_names_the_nearest(env_id, nearest):
    message = fault(env_id, 1)
    assert repr(env_id) in message
    assert f"did you mean {nearest}" in message


@pytest.mark.parametrize("env_id", ["tests.nothing_here:Env", "no_such_package:Env", ":Env"])
def test_module_that_does_not_exist(env_id):
    assert repr(env_id.partition(":")[0]) in fault(env_id, 1)


def test_module_without_the_class():
    message = fault("tests.kit.envs:Cuont", 1)
    assert "'tests.kit.envs'" in message
    assert "'Cuont'" in message


@pytest.mark.parametrize("source", ["this is no python\n", "raise RuntimeError('half\\nwritten')\n"])
def test_module_that_fails_to_import(tmp_path, monkeypatch, source):
    name = "broken_environment_module"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert name in fault(f"{name}:Env", 1)


@pytest.mark.parametrize("env_id", ["tests.kit.envs:Hopeful", "tests.envs.test_envs:Renderer"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_missing_package_names_the_extra(env_id, backend):
    message = fault(env_id, 1, backend=backend)
    assert env_id in message
    assert "pip install 'lightning-ppo[mujoco]'" in message


def test_module_that_needs_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "needs_envpool.py").write_text("raise ModuleNotFoundError('No module named envpool', name='envpool')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "pip install 'lightning-ppo[envpool]'" in fault("needs_envpool:Env", 1)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "tests.kit.envs:Count"])
def test_native_implementation_that_does_not_exist(env_id):
    message = fault(env_id, 2, backend="vector")
    assert "env.backend" in message
    assert env_id in message


@pytest.mark.parametrize("env_id", ["tests.kit.envs:Count", "CartPole-v1", "Pendulum-v1"])
def test_wrong_constructor_argument(env_id):
    message = fault(env_id, 2, kwargs={"lenght": 3})
    assert env_id in message
    assert "'lenght'" in message


# how episodes start anew


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_mode_as_enum_and_as_string(mode):
    env = VectorEnv()
    for declared in (mode, mode.value):
        env.metadata = {"autoreset_mode": declared}
        assert autoreset_mode(env) is mode


@pytest.mark.parametrize(
    "metadata", [None, {}, {"autoreset_mode": None}, {"autoreset_mode": "sometimes"}, {"autoreset_mode": True}]
)
def test_autoreset_mode_that_is_missing_or_unknown(metadata):
    env = VectorEnv()
    env.metadata, env.num_envs = metadata, 1
    with pytest.raises(EnvironmentFault, match=r"metadata.*NextStep, SameStep, Disabled"):
        autoreset_mode(env)
    with pytest.raises(EnvironmentFault, match="autoreset"):
        VectorStepper(env)


# seeds


def test_seeds_are_distinct():
    grid = itertools.product((0, 1, 2, 2**32 - 1), PURPOSES)
    seeds = [value for seed, purpose in grid for value in derive_seeds(seed, 0, 64, purpose)]
    # 4 run seeds x 64 environments for each purpose
    assert len(set(seeds)) == len(seeds) == 256 * len(PURPOSES)
    assert all(0 <= value < 2**32 for value in seeds)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_seeds_belong_to_the_global_index(purpose):
    # 2 ranks of 4 environments get what 1 rank of 8 gets
    together = derive_seeds(7, 0, 8, purpose)
    assert together == derive_seeds(7, 0, 4, purpose) + derive_seeds(7, 4, 4, purpose)
    assert together == derive_seeds(7, 0, 8, purpose)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_every_copy_gets_its_own_seed(build, backend):
    seeds = derive_seeds(3, 0, 3, "training")
    stepper = VectorStepper(build("Pendulum-v1", 3, backend=backend))
    stepper.reset(seeds)
    single = gymnasium.make("Pendulum-v1")
    expected = np.stack([single.reset(seed=seed)[0] for seed in seeds])
    single.close()
    np.testing.assert_array_equal(stepper.observations, expected)
    assert len(np.unique(expected, axis=0)) == 3


# saving and restoring


@pytest.mark.parametrize(
    ("env_id", "backend", "before", "after"),
    [
        # a random policy falls after about 20 steps
        ("CartPole-v1", "vector", 60, 60),
        ("CartPole-v1", "sync", 60, 60),
        # truncated after 200, 500 and 999 steps
        ("Pendulum-v1", "auto", 205, 200),
        ("Pendulum-v1", "async", 205, 200),
        ("Acrobot-v1", "auto", 505, 500),
        ("MountainCarContinuous-v0", "auto", 1005, 1000),
    ],
)
def test_state_round_trip(build, env_id, backend, before, after):
    assert_resumes(lambda: build(env_id, 2, backend=backend), before, after)


@pytest.mark.parametrize(
    ("env_id", "before", "after"), [("HalfCheetah-v5", 1005, 1000), ("Hopper-v5", 100, 100), ("Ant-v5", 250, 250)]
)
def test_state_round_trip_mujoco(build, monkeypatch, tmp_path, env_id, before, after):
    pytest.importorskip("mujoco")
    # MuJoCo writes its warnings into a file in the working directory
    monkeypatch.chdir(tmp_path)
    assert_resumes(lambda: build(env_id, 2), before, after)


@pytest.mark.parametrize("before", range(12, 36, 3))
def test_state_round_trip_wherever_an_episode_stands(build, before):
    # among 16 environments some episode has just ended, or is just being reset, at several of these steps
    assert_resumes(lambda: build("CartPole-v1", 16), before, 30)


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
@pytest.mark.parametrize("before", [2, 3, 4])
def test_state_round_trip_with_a_reset_pending(mode, before):
    # under NEXT_STEP the first environment ends at step 2 and is reset at step 3
    assert_resumes(lambda: vector([lambda: Count(2), lambda: Count(3, "trunc")], mode), before, 6)


def test_state_of_containers(build):
    def make():
        return build("tests.envs.test_envs:Containers", 2, kwargs={"length": 3})

    assert_resumes(make, 4, 5)
    env, other = make(), make()
    env.reset(seed=1)
    play(env, [np.array([0, 1])] * 4)
    other.reset(seed=2)
    set_env_state(other, reloaded(get_env_state(env)[0]))
    for ours, theirs in zip(other.envs, env.envs, strict=True):
        ours, theirs = ours.unwrapped, theirs.unwrapped
        # the steps of both episodes so far: 0.5, 1.5, 2.5, 0.5 after the initial 0
        assert [x.tolist() for x in ours.history["steps"]] == [[0.0], [0.5], [1.5], [2.5], [0.5]]
        assert ours.history["last"] == theirs.history["last"] == (0, 0.0)
        assert type(ours.history["last"]) is tuple
        assert ours.spaces == theirs.spaces
        assert ours.hooks == theirs.hooks


@pytest.mark.parametrize("name", ["Mover", "OtherDtype", "Restart"])
def test_state_of_arrays(build, name):
    # the third reward of an episode is 1.5, also in the episode that the save cut in two and in the one after it
    assert_resumes(lambda: build(f"tests.envs.test_envs:{name}", 2, kwargs={"length": 3}), 4, 5)


def test_state_of_arrays_that_share_memory_is_exact_or_not_known(build):
    env = build("tests.envs.test_envs:View", 2, kwargs={"length": 3})
    env.reset(seed=0)
    state, reason = get_env_state(env)
    if state is None:
        assert "View." in reason
    else:
        assert_resumes(lambda: build("tests.envs.test_envs:View", 2, kwargs={"length": 3}), 4, 5)


@pytest.mark.parametrize("name", ["OwnState", "OwnArrayState"])
def test_environments_own_state_is_used(build, name):
    assert_resumes(lambda: build(f"tests.envs.test_envs:{name}", 2, kwargs={"length": 3}), 4, 5)


@pytest.mark.parametrize("backend", ["sync", "given"])
def test_state_that_cannot_be_known_names_the_attribute(build, backend):
    env = build("tests.kit.envs:Engine", 2) if backend == "sync" else vector([Engine, Engine])
    env.reset(seed=0)
    state, reason = get_env_state(env)
    assert state is None
    assert "Engine.engine" in reason
    assert "\n" not in reason


def test_state_in_other_processes_is_had_where_a_copy_can_tell_it(build):
    env = build("tests.kit.envs:Engine", 2, backend="async")
    env.reset(seed=0)
    assert get_env_state(env) == (None, "Engine.engine is a object, which is not plain data")
    given = AsyncVectorEnv([Count], autoreset_mode=AutoresetMode.SAME_STEP)
    given.reset(seed=0)
    state, reason = get_env_state(given)
    given.close()
    assert state is None
    assert "process" in reason


# ---------------------------------------------------------------- copies that do not move in step


def first_lengths(env, seeds):
    """Return the lengths of each copy's first two episodes under an action that never falls."""
    stepper = VectorStepper(env)
    stepper.reset(seeds)
    lengths = [[] for _ in range(env.num_envs)]
    ended_at = np.zeros(env.num_envs, int)
    for t in range(1, 2 * 200 + 1):
        _, terminations, truncations = stepper.step(np.zeros((env.num_envs, 1), np.float32))
        assert not terminations.any()
        for i in np.flatnonzero(truncations):
            lengths[i].append(t - ended_at[i])
            ended_at[i] = t
    env.close()
    return np.array([one[:2] for one in lengths])


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_the_first_episode_alone_is_cut_at_a_time_that_follows_from_the_seed(backend):
    seeds = derive_seeds(1, 0, 4, "training")

    def lengths(chosen, stagger=True):
        env = make_vector_env("Pendulum-v1", len(chosen), backend=backend, stagger=stagger)
        assert is_staggered(env) is stagger
        return first_lengths(env, chosen)

    found = lengths(seeds)
    assert len(set(found[:, 0])) == 4 and found[:, 0].max() <= 200
    assert (found[:, 1] == 200).all()
    # a copy's time depends on its own seed alone, whichever process it is in
    assert (lengths(seeds[2:]) == found[2:]).all()
    assert (lengths(seeds[:2], stagger=False) == 200).all()


def test_first_times_spread_over_the_whole_limit():
    env = gymnasium.make("Pendulum-v1")
    limits = []
    for seed in derive_seeds(3, 0, 400, "training"):
        copy = FirstEpisodeLimit(env)
        copy.reset(seed=seed)
        limits.append(copy.limit)
    assert 1 <= min(limits) < 5 and 195 < max(limits) <= 200
    assert np.mean(limits) == pytest.approx(100.5, abs=10)


def test_without_a_time_limit_nothing_is_cut_and_every_episode_is_reported():
    env = make_vector_env("tests.kit.envs:Loop4", 2, backend="sync", kwargs={"limit": 5}, stagger=True)
    assert not is_staggered(env)
    stepper = VectorStepper(env)
    stepper.reset([1, 2])
    ends = [stepper.step(np.zeros(2, np.int64))[2] for _ in range(10)]
    assert [bool(end.all()) for end in ends] == [False] * 4 + [True] + [False] * 4 + [True]


def test_a_copy_that_was_reset_before_it_acted_still_has_its_first_episode():
    env = FirstEpisodeLimit(gymnasium.make("Pendulum-v1"))
    env.reset(seed=1)
    first = env.limit
    env.reset(seed=2)
    assert env.limit not in (0, first)
    env.step(np.zeros(1, np.float32))
    env.reset()
    assert env.limit == 0


# ---------------------------------------------------------------- wrappers

WRAPPERS = [
    {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 3}},
    "gymnasium.wrappers.FlattenObservation",
]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_wrappers_are_applied_in_order_to_each_copy(backend):
    env = make_vector_env("tests.kit.envs:Count", 2, backend=backend, wrappers=WRAPPERS)
    try:
        assert env.single_observation_space.shape == (3,)
        env.reset(seed=[1, 2])
        env.step(np.zeros(2, int))
        observations, *_ = env.step(np.zeros(2, int))
        assert observations.tolist() == [[0.0, 1.0, 2.0]] * 2
        state, reason = get_env_state(env)
        env.step(np.zeros(2, int))
        assert state is not None, reason
        set_env_state(env, state)
        assert env.step(np.zeros(2, int))[0].tolist() == [[1.0, 2.0, 3.0]] * 2
    finally:
        env.close()


def test_an_environment_with_wrappers_is_not_stepped_natively():
    env = make_vector_env("CartPole-v1", 2, wrappers=WRAPPERS[1:])
    assert isinstance(env, SyncVectorEnv) and isinstance(env.envs[0].env, gymnasium.wrappers.FlattenObservation)
    with pytest.raises(ConfigError, match=r"env\.wrappers: vector has no single copies"):
        make_vector_env("CartPole-v1", 2, backend="vector", wrappers=WRAPPERS[1:])


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("gymnasium.wrappers.FlatenObservation", "cannot import"),
        ("gymnasium.Env", "is no gymnasium.Wrapper"),
        ({"class_path": "gymnasium.wrappers.TimeLimit"}, "could not be built"),
    ],
    ids=str,
)
def test_a_wrong_wrapper_is_named(wrapper, message):
    with pytest.raises(ConfigError, match=f"env.wrappers: .*{message}"):
        make_vector_env("tests.kit.envs:Count", 2, wrappers=[wrapper])
