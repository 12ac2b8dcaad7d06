"""Environments that raise, hang, die or return nonsense: named with their last action, replaced, or stopped for."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo.cli import train
from lightning_ppo.envs.faults import GuardedEnv, interrupted_after
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.collecting import collector, linear_policy
from tests.kit.commands import SMALL, rows
from tests.kit.envs import Count, Touchy, make_vector_env

WRONG = {
    "array_reward": "returned the reward array([1.]",
    "text_reward": "returned the reward 'much'",
    "four": "returned a tuple of 4",
    "nothing": "returned a NoneType",
    "int_done": "returned terminated=0",
    "list_observation": "returned an observation of shape (2,)",
    "no_info": "returned the info None",
}


class Fragile(Count):
    """Fails in its 40th step while the environment variable FRAGILE is set."""

    def __init__(self) -> None:
        super().__init__(1000)

    def step(self, action):
        if self.t == 40 and "FRAGILE" in os.environ:
            raise ValueError("not today")
        return super().step(action)


@pytest.fixture
def build():
    """Return a stepper of 3 copies; they are closed after the test, within seconds whatever they did."""
    built = []

    def build_stepper(kind, backend, **kwargs):
        arguments = {k: kwargs.pop(k) for k in ("at", "length") if k in kwargs}
        env = make_vector_env("tests.kit.envs:Touchy", 3, backend=backend, kwargs={"kind": kind, **arguments}, **kwargs)
        built.append(env)
        stepper = VectorStepper(env)
        stepper.reset([1, 2, 3])
        return stepper

    yield build_stepper
    for env in built:
        started = time.monotonic()
        env.close()
        assert time.monotonic() - started < 8.0
        assert not any(process.is_alive() for process in getattr(env, "processes", []))


def fault(stepper, actions):
    with pytest.raises(EnvironmentFault) as error:
        stepper.step(np.array(actions))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_fault_names_copy_step_action_and_cause(build, backend, capfd):
    stepper = build("raises", backend)
    stepper.step(np.array([0, 0, 0]))
    message = fault(stepper, [0, 0, 1])
    assert message == ("env 2 raised in step after 2 steps: ZeroDivisionError: the wheel came off (last action 1)")
    assert capfd.readouterr().err == ""  # no traceback of the process


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_must_not_be_returned(build, backend, kind):
    message = fault(build(kind, backend), [0, 1, 0])
    assert message.startswith(f"env 1 {WRONG[kind]}") and message.endswith("(last action 1)")


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_copy_that_hangs_is_interrupted(build, backend):
    stepper = build("hangs", backend, timeout=0.5)
    started = time.monotonic()
    message = fault(stepper, [1, 0, 0])
    assert 0.4 < time.monotonic() - started < 5.0
    assert message == "env 0 did not return from step 1 within 0.5 s (env.timeout) (last action 1)"


def test_somebody_elses_timer_rings_once_and_not_too_early():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    started = time.monotonic()
    others, _ = signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        for _ in range(10):  # one block right after the other, so that its time comes within one of them
            with interrupted_after(10.0):
                time.sleep(0.03)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, others)
    assert len(rung) == 1 and rung[0] - started >= 0.1


def test_a_process_that_dies_is_named(build):
    stepper = build("dies", "async")
    stepper.step(np.array([0, 0, 0]))
    assert fault(stepper, [0, 1, 0]) == "env 1 died in step: its process ended by SIGKILL (last action 1)"


def test_a_process_that_cannot_be_interrupted_is_named(build, monkeypatch):
    monkeypatch.setattr("lightning_ppo.envs.processes.GRACE", 1.0)
    message = fault(build("deaf", "async", timeout=0.2), [0, 0, 1])
    assert "env 2 did not return from step within 1.6 s and could not be interrupted" in message


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_copy_is_replaced_and_the_others_go_on(build, backend, caplog):
    def play():
        stepper, seen = build("raises", backend, max_restarts=2), []
        for actions in ([0, 0, 0], [0, 1, 0], [0, 0, 0]):
            _, terminations, truncations = stepper.step(np.array(actions))
            seen.append((stepper.observations.flatten().tolist(), (terminations | truncations).tolist()))
            seen[-1] += (stepper.filler.tolist(), stepper.any_filler)
        stepper.step(np.array([0, 1, 0]))
        return seen, fault(stepper, [0, 1, 0])

    seen, message = play()
    assert seen == [
        ([1.0, 1.0, 1.0], [False] * 3, [False] * 3, False),
        ([2.0, 0.0, 2.0], [False, True, False], [False, True, False], True),
        ([3.0, 1.0, 3.0], [False] * 3, [False] * 3, False),
    ]
    assert "env 1 raised in step" in message  # for the third time
    assert caplog.text.count("it was replaced") == 2


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("kind", "told"), [("nan_observation", "the observation nan"), ("infinite_reward", "the reward inf")]
)
def test_a_copy_that_returns_no_numbers_is_replaced(build, backend, kind, told, caplog):
    stepper = build(kind, backend, max_restarts=1)
    stepper.step(np.array([0, 0, 0]))
    rewards, _, truncations = stepper.step(np.array([0, 1, 0]))
    assert truncations.tolist() == stepper.filler.tolist() == [False, True, False] and np.isfinite(rewards).all()
    assert stepper.observations.flatten().tolist() == [2.0, 0.0, 2.0]
    assert f"env 1 returned {told} from step 2, expected" in caplog.text and "it was replaced" in caplog.text


def test_processes_that_die_are_started_again(build, caplog):
    stepper = build("dies", "async", max_restarts=1)
    stepper.step(np.array([0, 0, 0]))
    stepper.step(np.array([0, 0, 1]))
    assert stepper.filler.all() and stepper.observations.flatten().tolist() == [0.0, 0.0, 0.0]
    assert caplog.text.count("env 2 died in step: its process ended by SIGKILL") == 1
    stepper.step(np.array([0, 0, 0]))
    assert not stepper.filler.any() and stepper.observations.flatten().tolist() == [1.0, 1.0, 1.0]
    assert "env 2 died" in fault(stepper, [0, 0, 1])


class Seeded(Touchy):
    """Observes a number drawn at reset."""

    def reset(self, **kwargs):
        gymnasium.Env.reset(self, **kwargs)
        self.t, self.number = 0, self.np_random.uniform(0.0, 1000.0)
        return self._observation(), {}

    def _observation(self):
        return np.array([self.number], dtype=np.float32)


@pytest.mark.parametrize(("backend", "kind"), [("sync", "raises"), ("async", "raises"), ("async", "dies")])
def test_replacements_are_seeded(backend, kind):
    def play():
        with contextlib.closing(
            make_vector_env("tests.envs.test_faults:Seeded", 2, backend=backend, kwargs={"kind": kind}, max_restarts=2)
        ) as env:
            stepper = VectorStepper(env)
            stepper.reset([5, 6])
            seen = [stepper.observations.copy()]
            for _ in range(2):
                stepper.step(np.array([0, 1]))
                seen.append(stepper.observations.copy())
            return np.stack(seen)[..., 0]

    first = play()
    assert np.array_equal(first, play())
    assert len(set(first[:, 1])) == 3  # another episode each time


def test_a_replaced_episode_is_cut_off_before_the_fault_and_masked():
    """Every third step of a copy fails; V(observation) = observation = steps since the reset."""
    env = make_vector_env(
        "tests.kit.envs:Touchy", 1, backend="sync", kwargs={"kind": "raises", "at": 3}, max_restarts=100
    )
    policy = linear_policy(env)
    collecting = collector(env, policy, 7)
    collecting.policy.head.noise = lambda shape, _: torch.tensor([0.0, 1e9]).expand(*shape, 2)  # always action 1
    with contextlib.closing(env):
        rollout = collecting.collect()
    # steps 1, 2, fault, 1, 2, fault, 1
    assert rollout.valid[:, 0].tolist() == [True, True, False, True, True, False, True]
    assert rollout.truncations[:, 0].tolist() == [False, True, True, False, True, True, False]
    assert not rollout.terminations.any()
    assert rollout.observations.flatten().tolist() == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    kept = rollout.valid[:, 0]
    assert rollout.next_values[kept, 0].tolist() == [1.0, 2.0, 1.0, 2.0, 1.0]
    assert len(rollout.episodes.returns) == 0  # no episode ended by itself
    assert collecting.episodes.lengths.tolist() == [1] and collecting.episodes.returns.tolist() == [1.0]


def test_settings_that_cannot_watch():
    for kwargs in ({"timeout": 1.0}, {"max_restarts": 1}):
        with pytest.raises(ConfigError, match=r"set env\.backend to sync or async"):
            make_vector_env("CartPole-v1", 2, backend="vector", **kwargs)
        with contextlib.closing(make_vector_env("CartPole-v1", 2, **kwargs)) as env:
            assert type(env).__name__ == "SyncVectorEnv"


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_run_stops_with_its_state_saved_and_goes_on_once_mended(tmp_path, monkeypatch, capsys, backend):
    monkeypatch.setenv("FRAGILE", "1")
    run_dir = tmp_path / "run"
    arguments = [
        *SMALL,
        "env.id=tests.envs.test_faults:Fragile",
        "evaluation.episodes=0",
        "evaluation.final_episodes=0",
    ]
    arguments += [f"env.backend={backend}", "rollouts_per_epoch=100", "total_env_steps=384"]
    assert train.main([*arguments, f"run_dir={run_dir}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "raised in step after 41 steps: ValueError: not today (last action" in error
    # two rollouts of 16 steps x 4 copies were learnt from
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert (saved["ppo"]["iterations"], saved["ppo"]["env_steps"]) == (2, 128)
    monkeypatch.delenv("FRAGILE")
    assert train.main([f"run_dir={run_dir}", "resume=last"]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] == 384
    steps = [int(row["step"]) for row in rows(run_dir / "metrics.csv") if row["loss/policy"]]
    assert steps == list(range(64, 385, 64))


def test_a_run_goes_on_with_replaced_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAGILE", "1")
    run_dir = tmp_path / "run"
    arguments = [
        *SMALL,
        "env.id=tests.envs.test_faults:Fragile",
        "evaluation.episodes=0",
        "evaluation.final_episodes=0",
    ]
    assert train.main([*arguments, f"run_dir={run_dir}", "env.on_error=restart", "total_env_steps=384"]) == 0
    # of 6 rollouts of 64 rows, two hold 4 failed steps each (steps 41 and 82), which leaves room for no seventh
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] == 384 - 8


NESTED = spaces.Dict({"a": spaces.Box(0.0, 1.0, (3,)), "b": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,))))})
SOUND = {"a": np.zeros(3, np.float32), "b": (0, np.zeros(2, np.float32))}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"a": np.zeros(4)}, r"of shape \(4,\) in the entry a from step 1, but its observation space has shape \(3,\)"),
        ({"b": (0, np.zeros(3))}, r"of shape \(3,\) in the entry b/1 from step 1"),
        ({"b": (0,)}, "without the entry b/1 from step 1"),
        ({"b": {}}, "of type dict in the entry b from step 1, but its observation space is a tuple"),
        ({"a": None}, r"of shape \(\) in the entry a"),
    ],
    ids=str,
)
def test_a_wrong_entry_of_an_observation_is_named(wrong, expected):
    class Nested(Count):
        def __init__(self):
            super().__init__()
            self.observation_space = NESTED
            self.action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,))))

        def reset(self, *, seed=None, options=None):
            return SOUND, {}

        def step(self, action):
            return {**SOUND, **wrong}, 1.0, False, False, {}

    env = GuardedEnv(Nested, 3)
    env.reset()
    # the action has parts of unequal shapes, and is shown all the same
    with pytest.raises(EnvironmentFault, match=rf"env 3 returned an observation {expected}.*\(last action \(1, array"):
        env.step((1, np.zeros(2)))


ORPHANS = """
import os, signal
from lightning_ppo.envs.processes import ProcessVectorEnv
from tests.kit.envs import Count

env = ProcessVectorEnv([Count, Count])
env.reset(seed=[1, 2])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_copies_whose_trainer_is_gone_end_without_a_word():
    # as under rollout.overlap, where whoever steps the copies is killed when training fails
    ended = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stderr == ""
