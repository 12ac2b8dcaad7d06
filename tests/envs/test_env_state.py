"""What environments hold comes back as it was, and what settings and code say now wins over it."""

import importlib
import io
import json
import logging
import random
import re
import sys
import threading

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.cli import train
from lightning_ppo.envs import get_env_state, set_env_state
from lightning_ppo.envs.state import return_to_built
from lightning_ppo.run import checkpointing
from lightning_ppo.run.checkpointing import LastCheckpoint
from lightning_ppo.support.packing import pack, unpack
from tests.kit.envs import Count, make_vector_env, vector
from tests.kit.resuming import assert_resumes, reloaded
from tests.kit.training import make_trainer

SMALL = [
    *("env.num_envs=4", "rollout.num_steps=16", "update.epochs=1", "update.minibatch_size=64", "rollouts_per_epoch=1"),
    *("evaluation.episodes=2", "evaluation.final_episodes=2", "evaluation.num_envs=2"),
]


class Level(Count):
    """Its setting is used as the constructor, or the first reset, left it."""

    def __init__(self, level=1, **kwargs):
        super().__init__(**kwargs)
        self.level = level

    def reset(self, **kwargs):
        self.derived = 10 * self.level
        return super().reset(**kwargs)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(self.level + self.derived), *rest


class Hidden(Count):
    """Keeps its setting in an object that changes."""

    def __init__(self, level=1, **kwargs):
        super().__init__(**kwargs)
        self.engine = Engine(level)

    def step(self, action):
        self.engine.turns += 1
        observation, _, *rest = super().step(action)
        return observation, float(self.engine.level), *rest


class Engine:
    def __init__(self, level):
        self.level, self.turns = level, 0


class Tables(Count):
    """A table that never changes, one that the reset loads, and a history."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fixed = np.random.default_rng(0).normal(size=(20_000, 8))
        self.history = []

    def reset(self, **kwargs):
        self.loaded = np.random.default_rng(1).normal(size=(20_000, 8))
        return super().reset(**kwargs)

    def step(self, action):
        self.history.append({"t": self.t, "action": int(action)})
        return super().step(action)


class Node:
    def __init__(self, number):
        self.number, self.next = number, None


class Linked(Count):
    """Lists, dicts, deques, sets and objects that refer to each other and themselves; a chain too long to recurse."""

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        self.agents = [{"x": 0}, {"x": 100}]
        self.player = self.agents[0]
        rooms = [{"id": i} for i in range(4)]
        for i, room in enumerate(rooms):
            room["next"] = rooms[(i + 1) % 4]
        self.room = rooms[0]
        self.itself = [0]
        self.itself.append(self.itself)
        chain = [Node(i) for i in range(3000)]
        for i, node in enumerate(chain):
            node.next = chain[(i + 1) % len(chain)]
        self.node, self.visited = chain[0], {chain[0]}
        self.dice = {"own": random.Random(3), "other": np.random.RandomState(3)}
        return result

    def step(self, action):
        self.player["x"] += 1
        self.room = self.room["next"]
        self.itself[1][0] += 1
        self.node = self.node.next
        known = self.node in self.visited
        self.visited.add(self.node)
        observation, _, *rest = super().step(action)
        reward = self.agents[0]["x"] + 10 * self.room["id"] + 100 * self.itself[0] + self.node.number + 1000 * known
        return observation, reward + self.dice["own"].random() + self.dice["other"].rand(), *rest


class Moods(Count):
    """What it does next is a method that it holds."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mood = self.calm

    def calm(self):
        self.mood = self.wild
        return 1.0

    def wild(self):
        self.mood = self.calm
        return 2.0

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.mood(), *rest


class CloseRaises(Count):
    def close(self):
        raise RuntimeError("the simulator has gone already")


class Refuses(Count):
    """Its own state cannot be had, or not be taken."""

    def __init__(self, what="get", **kwargs):
        super().__init__(**kwargs)
        self.what = what

    def get_state(self):
        if self.what == "get":
            raise RecursionError("round and round")
        return {"t": self.t}

    def set_state(self, state):
        raise KeyError("no such thing")


def build(name, backend="sync", wrappers=(), **kwargs):
    return make_vector_env(f"tests.envs.test_env_state:{name}", 2, backend=backend, kwargs=kwargs, wrappers=wrappers)


def resumed(saved, restored, steps=2):
    """Save one environment after some steps; return why the other, reset, is not restored, if so, and its rewards."""
    try:
        saved.reset(seed=[1, 2])
        for _ in range(steps):
            saved.step(np.zeros(2, int))
        state, reason = get_env_state(saved)
        assert state is not None, reason
        restored.reset(seed=[3, 4])
        return set_env_state(restored, reloaded(state)), restored.step(np.zeros(2, int))[1].tolist()
    finally:
        saved.close()
        restored.close()


# ---------------------------------------------------------------- settings and code win


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(("name", "rewards"), [("Level", [55.0, 55.0]), ("Hidden", [5.0, 5.0])])
def test_a_setting_that_changed_is_not_undone(name, rewards, backend):
    reason, seen = resumed(build(name, backend), build(name, backend, level=5))
    assert reason and seen == rewards
    if name == "Level":
        assert reason == "Level.level is 5, but was 1 when the run was saved"
    assert resumed(build(name, backend, level=5), build(name, backend, level=5)) == ("", rewards)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_so_are_time_limits_and_the_settings_of_wrappers(backend):
    def limited(limit):
        return build("Level", backend, [{"class_path": "gymnasium.wrappers.TimeLimit", "init_args": limit}], length=99)

    reason, _ = resumed(limited({"max_episode_steps": 9}), limited({"max_episode_steps": 7}))
    assert reason.startswith("TimeLimit._max_episode_steps is 7, but was 9 when the run was saved")
    reason, _ = resumed(build("Level", backend), limited({"max_episode_steps": 7}))
    assert re.match(r"layer \d is gymnasium\.wrappers\.common\.TimeLimit, but was", reason)


def test_a_given_vector_environment_has_the_settings_that_it_was_given_with():
    def given(level):
        env = vector([lambda: Level(level)] * 2)
        RolloutDataModule(env, num_steps=4)
        return env

    assert resumed(given(1), given(5)) == ("Level.level is 5, but was 1 when the run was saved", [55.0, 55.0])


@pytest.mark.parametrize("place", ["class", "function", "import"])
def test_source_that_was_edited_wins(place, tmp_path, monkeypatch):
    source = (
        "from tests.kit.envs import Count\n{imported}\n"
        "class Falling(Count):\n    {body}\n"
        "    def reset(self, **kwargs):\n        self.now = {used}\n        return super().reset(**kwargs)\n"
        "    def step(self, action):\n        observation, _, *rest = super().step(action)\n"
        "        return observation, self.now, *rest\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def falling(gravity):
        used = {"class": "self.gravity", "function": str(gravity), "import": "GRAVITY"}[place]
        body = f"gravity = {gravity}" if place == "class" else "pass"
        (tmp_path / "planets.py").write_text(f"GRAVITY = {gravity}\n")
        imported = "from planets import GRAVITY\n" if place == "import" else ""
        (tmp_path / "falling.py").write_text(source.format(imported=imported, body=body, used=used))
        for name in ("falling", "planets"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return make_vector_env("falling:Falling", 2, backend="sync")

    reason, seen = resumed(falling(9.81), falling(1.62))
    assert "falling" in reason and seen == [1.62, 1.62]
    assert resumed(falling(1.62), falling(1.62)) == ("", [1.62, 1.62])


@pytest.mark.parametrize(
    "modes",
    [[], pytest.param(["rollout.overlap=true", "rollout.processes=2"], marks=pytest.mark.ranks)],
    ids=["plain", "elsewhere"],
)
def test_training_and_evaluation_step_the_same_task_after_resuming(modes, tmp_path, capsys, caplog):
    arguments = [*SMALL, *modes, "env.id=tests.envs.test_env_state:Level", "env.stagger=false", f"run_dir={tmp_path}"]
    assert train.main([*arguments, "total_env_steps=64"]) == 0
    with caplog.at_level("INFO", logger="lightning_ppo"):
        assert train.main([f"run_dir={tmp_path}", "resume=last", "total_env_steps=704", "env.kwargs={level: 5}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train_return_mean"] == summary["eval_return_mean"] == 4 * 55
    assert "env.kwargs.level changes from None to 5" in capsys.readouterr().out
    assert caplog.text.count("Episodes in progress were restarted: env.kwargs changed since the run was saved.") == 1


# ---------------------------------------------------------------- objects that refer to each other


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    "name", ["tests.kit.envs:Village", "tests.envs.test_env_state:Linked", "tests.envs.test_env_state:Moods"]
)
def test_who_is_who_is_kept(name, backend):
    made = []

    def make():
        made.append(make_vector_env(name, 2, backend=backend, kwargs={"length": 23}))
        return made[-1]

    try:
        assert_resumes(make, 30, 40)
    finally:
        for env in made:
            env.close()


def test_what_is_restored_is_saved_alike():
    one, other = (make_vector_env("tests.kit.envs:Village", 2, backend="sync") for _ in range(2))
    one.reset(seed=1)
    other.reset(seed=2)
    for _ in range(50):
        one.step(np.zeros(2, int))
    state = reloaded(get_env_state(one)[0])
    assert set_env_state(other, state) == ""
    again = get_env_state(other)[0]
    assert torch.equal(state["graph"], again["graph"]) and all(map(torch.equal, state["arrays"], again["arrays"]))


def test_an_environment_that_was_played_can_be_put_back_to_where_it_was_built():
    env = make_vector_env("tests.kit.envs:Village", 2, backend="sync")

    def play():
        return_to_built(env)
        env.reset(seed=1)
        return [env.step(np.zeros(2, int))[1].tolist() for _ in range(30)]

    assert play() == play()


@pytest.mark.parametrize("what", ["get", "set"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_state_that_cannot_be_had_or_taken_is_a_reason(what, backend):
    one, other = build("Refuses", backend, what=what), build("Refuses", backend, what=what)
    try:
        one.reset(seed=1)
        state, reason = get_env_state(one)
        if what == "get":
            assert state is None and "RecursionError: round and round" in reason
        else:
            other.reset(seed=1)
            assert "KeyError" in set_env_state(other, state)
    finally:
        one.close()
        other.close()


def test_a_file_makes_no_objects_but_those_of_the_environment():
    env = make_vector_env("tests.kit.envs:Village", 2, backend="sync")
    env.reset(seed=1)
    env.step(np.zeros(2, int))
    state, _ = get_env_state(env)
    text = state["graph"].numpy().tobytes()
    assert b"tests.kit.envs:Villager" in text
    for other in (b"subprocess:Popen", b"pathlib:Path", b"pytest:Item"):
        state["graph"] = torch.frombuffer(bytearray(text.replace(b"tests.kit.envs:Villager", other)), dtype=torch.uint8)
        assert set_env_state(env, state) == f"{other.decode()} is not of the environment's packages"
    for other, said in ((b"tests.kit.envs:vector", "no class"), (b"gymnasium.vector:AsyncVectorEnv", "no plain class")):
        state["graph"] = torch.frombuffer(bytearray(text.replace(b"tests.kit.envs:Villager", other)), dtype=torch.uint8)
        assert said in set_env_state(env, state)


# ---------------------------------------------------------------- size and time


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_what_did_not_change_is_not_stored_and_what_is_equal_once(backend):
    env = build("Tables", backend, length=1000)
    try:
        env.reset(seed=1)
        for _ in range(200):
            env.step(np.zeros(2, int))
        file = io.BytesIO()
        torch.save(pack(get_env_state(env)[0]), file)
    finally:
        env.close()
    one_table, histories = 20_000 * 8 * 8, 2 * 200 * 2 * 8
    generators = 2 * 13_500 if backend == "async" else 0  # the global ones of each copy's process
    assert one_table < len(file.getvalue()) < one_table + histories + generators + 30_000


def test_packed_data_holds_equal_tensors_once():
    data = [torch.arange(2000.0), torch.arange(2000.0), torch.ones(2000), (torch.arange(2000.0).view(20, 100), "x")]
    packed = pack(data)
    assert [len(tensor) for tensor in packed["tensors"]] == [4000]
    found = unpack(packed)
    assert all(map(torch.equal, found[:3], data[:3])) and torch.equal(found[3][0], data[3][0])
    found[0].zero_()
    assert found[1].sum() > 0


def fit(path=None, large_state=50.0, **settings):
    pl.seed_everything(3, verbose=False)
    env = {"id": "tests.envs.test_env_state:Tables", "num_envs": 2, "large_state": large_state}
    data = RolloutDataModule(env, num_steps=8)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
    trainer = make_trainer(**settings)
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    return trainer


def test_the_state_is_in_a_checkpoint_once_and_a_large_one_is_named(tmp_path):
    with pytest.warns(
        UserWarning, match=r"1 MB of each checkpoint are the state of environments, most of it in Tables\.loaded"
    ):
        trainer = fit(large_state=1.0, max_epochs=1)
        trainer.save_checkpoint(tmp_path / "one.ckpt")
    size = (tmp_path / "one.ckpt").stat().st_size
    assert 20_000 * 8 * 8 < size < 20_000 * 8 * 8 + 300_000


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(tmp_path, caplog):
    path = tmp_path / "one.ckpt"
    fit(max_epochs=1).save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    state = unpack(content["RolloutDataModule"]["ranks"][0])
    state["collector"]["stepper"]["env"] = {"attributes": {}, "children": {"envs": []}}
    content["RolloutDataModule"] = {"ranks": [pack(state)]}
    content["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [state]
    torch.save(content, path)
    with caplog.at_level("INFO", logger="lightning_ppo"):
        trainer = fit(path, max_epochs=2)
    assert trainer.current_epoch == 2
    assert "Episodes in progress were restarted: the checkpoint is of an earlier version" in caplog.text


def test_saving_takes_less_than_a_tenth_of_the_time(monkeypatch, caplog):
    now, saved = [0.0], []
    monkeypatch.setattr(checkpointing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(checkpointing, "as_ppo", lambda module: module)

    class Module:
        env_steps, device = 0, torch.device("cpu")

    class Trainer:
        def save_checkpoint(self, path):
            saved.append(now[0])
            now[0] += takes

    writer, module = LastCheckpoint("last.ckpt"), Module()
    for takes, epochs in ((0.05, 10), (2.0, 200)):
        del saved[:]
        with caplog.at_level(logging.INFO, logger="lightning_ppo"):
            for _ in range(epochs):
                now[0] += 1.0
                module.env_steps += 1
                writer.on_train_epoch_end(Trainer(), module)
        gaps = np.diff(saved)
        if takes < 0.1:
            assert len(saved) == epochs
        else:
            assert gaps.min() > 20.0 and gaps.max() < 30.0
    assert caplog.text.count("last.ckpt takes 2.0 s") == 1


# ---------------------------------------------------------------- closing


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_cannot_be_closed_costs_no_results(backend, tmp_path, caplog):
    arguments = [
        *SMALL,
        f"env.backend={backend}",
        "env.id=tests.envs.test_env_state:CloseRaises",
        f"run_dir={tmp_path}",
    ]
    assert train.main([*arguments, "total_env_steps=64"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["eval_return_mean"] == 4.0
    if backend == "sync":  # of processes the lines come from there
        assert caplog.text.count("env 0 raised in close: RuntimeError: the simulator has gone already") == 1
        assert caplog.text.count("raised in close") == 1  # whatever copies do the same


def test_a_vector_environment_that_cannot_be_closed_is_named(caplog):
    class Broken(gymnasium.vector.SyncVectorEnv):
        def close(self, **kwargs):
            raise OSError("no such window")

    from lightning_ppo.envs.faults import close_env

    close_env(Broken([Count]))
    assert "Broken raised in close: OSError: no such window" in caplog.text


class Caching(gymnasium.Env):
    """Keeps a cache that no file could hold, and says that it is no state."""

    observation_space = action_space = gymnasium.spaces.Discrete(9)
    not_state = ("cache",)

    def __init__(self):
        self.steps, self.cache = 0, threading.Lock()


@pytest.mark.parametrize("said", [("cache",), ()])
def test_attributes_that_are_said_to_be_no_state_are_left_out(said, monkeypatch):
    monkeypatch.setattr(Caching, "not_state", said)
    first, second = (gymnasium.vector.SyncVectorEnv([Caching]) for _ in range(2))
    own = second.envs[0].cache
    first.envs[0].steps = 4
    state, reason = get_env_state(first)
    assert bool(reason) == (not said)
    if said:
        assert set_env_state(second, state) == ""
        assert second.envs[0].steps == 4 and second.envs[0].cache is own
