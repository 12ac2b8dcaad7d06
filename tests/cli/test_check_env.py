"""`check-env`: each thing that is wrong with an environment is one line, and what is right is said, too."""

import random
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from lightning_ppo.cli import doctor, main
from lightning_ppo.support.packages import install

HERE = "tests.cli.test_check_env"


class Fine(gymnasium.Env):
    """Nothing is wrong with it; what derives from it has one fault."""

    observation_space = spaces.Box(-10.0, 10.0, (3,), np.float32)
    action_space = spaces.Discrete(2)
    dice = 0.0

    def observe(self):
        return np.array([self.t / 10, self.np_random.random(), self.start], np.float32)

    def reward(self):
        return float(self.np_random.random())

    def ends(self):
        return self.np_random.random() < 0.1, self.t >= 40

    def info(self):
        return {"dist": 0.5, "terms": {"ctrl": -1.0}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.start = 0, self.np_random.random()
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        terminated, truncated = self.ends()
        success = {"is_success": True} if terminated or truncated else {}
        return self.observe(), self.reward(), bool(terminated), bool(truncated), self.info() | success


class Fractions(Fine):
    observation_space = spaces.Discrete(3)

    def observe(self):
        return 5


class Outside(Fine):
    observation_space = spaces.Box(-0.1, 0.1, (3,), np.float32)


class Double(Fine):
    def observe(self):
        return super().observe().astype(np.float64)


class Endless(Fine):
    def ends(self):
        return False, False


class Limited(Fine):
    def ends(self):
        return self.t >= 7, False


class Short(Fine):
    def ends(self):
        return True, False


class Poor(Fine):
    def reward(self):
        return 0.0


class Rich(Fine):
    def reward(self):
        return 5e4


class Huge(Fine):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def observe(self):
        return super().observe() * 1e6


class Still(Fine):
    def observe(self):
        return np.zeros(3, np.float32)


class Unseeded(Fine):
    def reset(self, *, seed=None, options=None):
        return super().reset()


class Same(Fine):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=3)


class Chancy(Fine):
    def reward(self):
        return random.SystemRandom().random()


class Global(Fine):
    def reward(self):
        return np.random.random()


class Locked(Fine):
    def __init__(self):
        self.lock = threading.Lock()


class Forgetful(Fine):
    """Saves less than it has."""

    def get_state(self):
        return {"t": self.t}

    def set_state(self, state):
        self.t = state["t"]


class Silent(Fine):
    def info(self):
        return {}

    def step(self, action):
        return *super().step(action)[:4], {}


def lines_of(name, capsys, *arguments, steps=300):
    code = main(["check-env", name if "-v" in name else f"{HERE}:{name}", *arguments, f"--steps={steps}"])
    printed = capsys.readouterr().out.splitlines()
    assert printed and all(line[:6].strip() in ("ok", "note", "warn", "fail") for line in printed)
    return code, [(line[:6].strip(), line[6:20].strip(), line[20:]) for line in printed]


def test_a_good_environment(capsys):
    code, lines = lines_of("Fine", capsys)
    assert code == 0 and {level for level, *_ in lines} == {"ok"}
    topics = ["build", "spaces", "contract", "episodes", "rewards", "observations", "info", "info", "time", "seeds"]
    assert [topic for _, topic, _ in lines] == [*topics, "determinism", "resuming"]
    said = dict(
        zip([*topics[:7], "numbers", *topics[8:], "determinism", "resuming"], [text for *_, text in lines], strict=True)
    )
    assert said["info"] == "tells is_success, of which the rate is logged"
    assert said["numbers"] == "numbers that can be logged: env.log_info=[dist,terms.ctrl]"
    assert said["resuming"].startswith("exact: a restored environment makes the same 200 steps; ")


@pytest.mark.parametrize(
    ("name", "level", "topic", "said"),
    [
        ("Fractions", "fail", "contract", "the observation 5"),
        ("Outside", "warn", "contract", "the agent sees it as it is; correct space or environment"),
        ("Double", "warn", "contract", "of dtype float64: they are rounded"),
        ("Endless", "warn", "episodes", "none ended in 300 steps of 2 copies; without a time limit"),
        ("Limited", "warn", "episodes", "every one terminates after 7 steps; where that is a time limit"),
        ("Short", "warn", "episodes", "every one has a single step"),
        ("Poor", "warn", "rewards", "all 0 with an untrained policy"),
        ("Rich", "warn", "rewards", "normalize.rewards, on by default, scales them"),
        ("Huge", "warn", "observations", "normalize.observations, on by default, scales them"),
        ("Still", "warn", "observations", "no feature ever changes"),
        ("Unseeded", "warn", "seeds", "reset(seed) does not decide the first observation"),
        ("Same", "note", "seeds", "episodes begin alike whatever the seed"),
        ("Chancy", "warn", "determinism", "the same seed and actions part at step 1"),
        ("Global", "note", "determinism", "draws from the global generators of NumPy"),
        ("Locked", "note", "resuming", "episodes restart: "),
        ("Forgetful", "fail", "resuming", "a restored environment goes another way from step 1 on"),
        ("Silent", "note", "info", "tells no numbers and no is_success"),
    ],
)
def test_each_fault_is_one_line(name, level, topic, said, capsys):
    code, lines = lines_of(name, capsys)
    found = [text for one, other, text in lines if (one, other) == (level, topic)]
    assert len(found) == 1 and said in found[0], lines
    assert code == (level == "fail")
    expected = {"Same": 2}.get(name, 1)
    assert sum(one != "ok" for one, *_ in lines) <= expected + 1, lines  # one fault may show in two places


@pytest.mark.parametrize("name", ["CartPole-v1", "lightning_ppo.envs.torch_envs:TorchCartPole", "Pendulum-v1"])
def test_environments_that_come_along_are_fine(name, capsys):
    code = main(["check-env", name, "--steps=150"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and not [line for line in lines if line.startswith(("warn", "fail"))], lines
    assert any(line.startswith("ok") and "resuming" in line for line in lines), lines


def test_settings_are_those_of_train(capsys):
    code, lines = lines_of("Fine", capsys, "env.backend=async", "env.max_episode_steps=5", steps=30)
    assert code == 0 and "ProcessVectorEnv of 2 copies" in lines[0][2]
    assert "of 1 to 5 steps" in lines[3][2] or "of 2 to 5 steps" in lines[3][2] or "of 3 to 5 steps" in lines[3][2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Nothing"], "neither defines nor registers 'Nothing'"),
        (["Fine", "env.kwargs.size=3"], "could not be built: TypeError"),
    ],
)
def test_what_cannot_be_built_is_one_line(arguments, said, capsys):
    code, lines = lines_of(arguments[0], capsys, *arguments[1:])
    assert code == 1 and len(lines) == 1 and lines[0][0] == "fail" and said in lines[0][2]


def test_mistakes(capsys):
    assert main(["check-env", "CartPole-v1", "env.bakend=sync"]) == 2
    assert "env.bakend" in capsys.readouterr().err
    assert main(["check-env", "CartPole-v1", "--steps=0"]) == 2


def test_doctor_shows_how_to_install_an_extra_once():
    missing = f"no: env.id: X needs the package mujoco: {install('mujoco')}"
    sections = [("environments", [("a", missing), ("b", "ok")]), ("rendering", [("a", missing)])]
    sections.append(("extras", [("mujoco", f"missing mujoco, for X: {install('mujoco')}")]))
    text = doctor.to_text(doctor._once(sections))
    assert text.count(install("mujoco")) == 1 and text.count("no: needs the extra mujoco, see below") == 2
