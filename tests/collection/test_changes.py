"""Changing environments between rollouts: it reaches every copy, is kept, and is exact on resuming."""

import multiprocessing
import os
import threading
from contextlib import nullcontext

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.changes import Changes
from lightning_ppo.envs.changes import make_change
from lightning_ppo.envs.reaching import make_changes
from lightning_ppo.envs.torch_envs import TorchCartPole
from lightning_ppo.run.curriculum import SetProgress
from lightning_ppo.support import distributed
from lightning_ppo.support.errors import CheckpointError, ConfigError
from tests.kit.envs import make_vector_env
from tests.kit.resuming import MidEpoch, assert_same_agent
from tests.kit.training import Recording, make_trainer

DIAL = "tests.collection.test_changes:Dial"
MODES = {
    "sync": {"backend": "sync"},
    "async": {"backend": "async"},
    "overlap": {"backend": "sync", "overlap": True},
    "processes": {"backend": "sync", "processes": 2},
    "overlapped processes": {"backend": "sync", "overlap": True, "processes": 2},
    "overlapped async": {"backend": "async", "overlap": True},
}


class Dial(gymnasium.Env):
    """Shows and pays its level, which only others change; `raised` adds up all calls, `start` is the level at reset."""

    def __init__(self, level=0.0, fails_at=None, dies_at=None, unreadable=False):
        self.observation_space = spaces.Box(-100.0, 100.0, (4,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.level, self.raised, self.progress, self.start, self.t = level, 0.0, 0.0, 0.0, 0
        self.fails_at, self.dies_at = fails_at, dies_at
        self.lock = threading.Lock() if unreadable else None
        self.table = None

    def _observation(self):
        return np.array([self.start, self.raised, self.progress, self.np_random.random()], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.start = 0, self.level
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        if self.t == self.fails_at:
            raise ZeroDivisionError("a wheel came off")
        if self.t == self.dies_at:
            os._exit(3)
        return self._observation(), float(self.level), False, self.t >= 5, {}

    def raise_by(self, amount, times=1):
        self.raised += amount * times

    def set_progress(self, progress):
        self.progress = progress


class Twice(gymnasium.Wrapper):
    """Multiplies rewards by a factor of its own, and has a `level` that is not the environment's."""

    def __init__(self, env):
        super().__init__(env)
        self.factor, self.level = 2.0, "the wrapper's"

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, reward * self.factor, *rest


class Levels(pl.Callback):
    """Sets the level, and calls a method, after each iteration; notes what evaluations return."""

    def __init__(self, evaluation=False):
        self.evaluation, self.returns = evaluation, []

    def on_train_batch_end(self, trainer, module, *_):
        trainer.datamodule.set_attr("level", float(module.iterations), evaluation=self.evaluation)
        trainer.datamodule.call("raise_by", 0.5, times=2)

    def on_validation_end(self, trainer, module):
        self.returns.append(float(trainer.callback_metrics["eval/return_mean"]))


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def build(mode="sync", model=Recording, kwargs=None, num_envs=4, env_settings=(), seed=5, **settings):
    pl.seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        {"id": DIAL, "kwargs": kwargs or {}, "num_envs": num_envs, "stagger": False, **dict(env_settings)},
        num_steps=6,
        rollouts_per_epoch=2,
        evaluation={"episodes": 2, "num_envs": 2},
        seed=seed,
        **(MODES[mode] | settings),
    )
    update = {"epochs": 1, "minibatch_size": 6}
    return model(data.observation_space, data.action_space, update=update, total_env_steps=24 * 6), data


def fit(pair, epochs=2, path=None, callbacks=(), save=None, evaluates=1.0):
    trainer = make_trainer(max_epochs=epochs, limit_val_batches=evaluates, callbacks=list(callbacks))
    trainer.fit(*pair, ckpt_path=path, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return pair[0], trainer


def paid(model):
    """Return what each rollout's copies were paid, one number where all were paid the same."""
    return [sorted(set(rollout.rewards.flatten().tolist())) for rollout in model.rollouts]


@pytest.mark.parametrize("mode", MODES)
def test_changes_reach_every_copy_before_the_next_rollout_is_begun(mode):
    model, data = build(mode)
    data.set_attr("level", 7.0)
    fit((model, data), callbacks=[Levels()])
    late = data.rollout_settings.overlap  # the next rollout is in progress when a callback speaks
    levels = [7.0, 7.0, 1.0, 2.0] if late else [7.0, 1.0, 2.0, 3.0]
    assert paid(model) == [[level] for level in levels]
    assert set(model.rollouts[0].observations[0, :, 0].tolist()) == {7.0}, "before the first reset"
    raised = [rollout.observations[-1, :, 1].tolist() for rollout in model.rollouts]
    assert raised == [[max(0.0, number - late)] * 4 for number in range(4)]


@pytest.mark.parametrize("mode", MODES)
def test_resuming_is_exact(mode, tmp_path):
    path = tmp_path / "agent.ckpt"
    through = fit(build(mode), callbacks=[Levels(), SetProgress()], evaluates=0)
    stopped = build(mode)
    with pytest.raises(KeyError, match="stop here"):
        fit(stopped, callbacks=[Levels(), SetProgress(), MidEpoch(path, 3)], evaluates=0)
    stopped[1].teardown("fit")
    resumed = fit(build(mode), 2, path, callbacks=[Levels(), SetProgress()], evaluates=0)
    assert through[0].iterations == resumed[0].iterations == 4
    assert_same_agent(*through, *resumed)
    for one, other in zip(through[0].rollouts[3:], resumed[0].rollouts, strict=True):
        assert torch.equal(one.rewards, other.rewards) and torch.equal(one.observations, other.observations)


def test_overlap_that_is_turned_off_on_resuming_makes_what_was_waiting(tmp_path):
    path = tmp_path / "agent.ckpt"
    fit(build("overlap"), 2, callbacks=[Levels()], save=path)
    for mode, warned in (("sync", pytest.warns(UserWarning, match="collected ahead")), ("overlap", nullcontext())):
        with warned:
            model, _ = fit(build(mode), 3, path)
        # the level of iteration 4 was asked for while the rollout of level 3 was in progress
        assert paid(model) == ([[4.0], [4.0]] if mode == "sync" else [[3.0], [4.0]])


@pytest.mark.parametrize(
    ("mode", "kwargs"),
    [("sync", {"fails_at": 4}), ("async", {"fails_at": 4}), ("async", {"dies_at": 4})],
    ids=["sync", "async", "process"],
)
def test_copies_that_take_the_place_of_others_are_changed_too(mode, kwargs):
    model, data = build(mode, kwargs=kwargs, env_settings={"on_error": "restart"})
    data.set_attr("level", 3.0)
    data.call("raise_by", 0.25)
    fit((model, data), 1, evaluates=0)
    rollouts = model.rollouts
    assert any((~rollout.valid).any() for rollout in rollouts)
    assert {x for r in rollouts for x in r.rewards[r.valid].tolist()} == {3.0}
    assert {x for r in rollouts for x in r.observations[..., 1][1:].flatten().tolist()} == {0.25}


def test_where_the_state_cannot_be_restored_the_changes_are_made_again(tmp_path):
    path, kwargs = tmp_path / "agent.ckpt", {"unreadable": True}
    fit(build(kwargs=kwargs), 1, callbacks=[Levels()], save=path)
    model, data = build(kwargs=kwargs)
    fit((model, data), 2, path)
    assert paid(model) == [[2.0], [2.0]]
    assert set(model.rollouts[0].observations[0, :, 0].tolist()) == {2.0}, "before the first reset"
    # of the calls the last one is made again
    assert set(model.rollouts[0].observations[..., 1].flatten().tolist()) == {1.0}


@pytest.mark.parametrize("unreadable", [False, True], ids=["exact", "episodes restart"])
def test_a_new_setting_wins_over_the_saved_one(unreadable, tmp_path):
    path, kwargs = tmp_path / "agent.ckpt", {"unreadable": unreadable}

    def resumed(level=None):
        model, data = build(kwargs=kwargs)
        if level is not None:
            data.set_attr("level", level)
        fit((model, data), 2, path)
        return paid(model)[0]

    pair = build(kwargs=kwargs)
    pair[1].set_attr("level", 1.0)
    pair[1].set_attr("table", np.arange(3.0))
    fit(pair, 1, callbacks=[Levels()], save=path)
    assert resumed() == resumed(1.0) == [2.0], "the same script goes on where it was"
    assert resumed(9.0) == [9.0]
    model, data = build(kwargs=kwargs | {"level": 8.0})
    fit((model, data), 2, path)
    assert paid(model)[0] == [8.0], "env.kwargs.level has changed"


def test_values_are_taken_as_they_are_and_kept(tmp_path):
    path, table = tmp_path / "agent.ckpt", np.arange(4.0)
    pair = build(kwargs={"unreadable": True})
    pair[1].set_attr("table", [table, {"a": (1, 2)}])
    table[:] = -1.0
    fit(pair, 1, save=path)
    model, data = build(kwargs={"unreadable": True})
    seen = []

    class Looks(pl.Callback):
        def on_train_end(self, trainer, module):
            seen.extend(trainer.datamodule.env.get_attr("table"))

    fit((model, data), 2, path, callbacks=[Looks()])
    assert len(seen) == 4 and len({id(value) for value in seen}) == 4
    for first, second in seen:
        assert first.tolist() == [0.0, 1.0, 2.0, 3.0] and second == {"a": (1, 2)}


def test_what_a_checkpoint_cannot_hold_is_said(tmp_path, caplog):
    pair = build()
    pair[1].set_attr("table", threading.Thread)
    fit(pair, 1, save=tmp_path / "agent.ckpt")
    assert [r.getMessage() for r in caplog.records if "table" in r.getMessage()] == [
        "datamodule.set_attr('table'): a checkpoint cannot hold a type, so a resumed run does not make the change again"
    ]


@pytest.mark.parametrize("evaluation", [False, True])
def test_evaluation_environments_are_changed_where_that_is_asked_for(evaluation):
    noted = Levels(evaluation)
    fit(build(), callbacks=[noted])
    assert noted.returns == ([10.0, 20.0] if evaluation else [0.0, 0.0])


def test_environments_that_were_given_are_changed_too():
    def copies():
        return SyncVectorEnv([Dial, Dial], autoreset_mode="SameStep")

    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule(copies(), num_steps=6, evaluation_env=copies(), evaluation={"episodes": 2})
    model = Recording(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 6})
    noted = Levels(evaluation=True)
    make_trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=1.0, callbacks=[noted]).fit(model, data)
    assert paid(model)[:3] == [[0.0], [1.0], [2.0]] and noted.returns[0] == 5.0 * len(model.rollouts) / 2


# ---------------------------------------------------------------- who has what


def change(env, how, name, *args, **kwargs):
    make_changes(env, [make_change(how, name, args, kwargs)])


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_the_innermost_that_has_it_is_changed(backend):
    env = make_vector_env(DIAL, 2, backend=backend, wrappers=[Twice])
    change(env, "set_attr", "level", 1.5)
    change(env, "set_attr", "factor", 4.0)
    env.reset(seed=1)
    assert env.step(np.zeros(2, np.int64))[1].tolist() == [6.0, 6.0]
    assert env.get_attr("level") == ("the wrapper's",) * 2
    for name in ("limit", "steps", "index"):  # of layers that this package puts around copies
        with pytest.raises(ConfigError, match=f"Dial has no attribute '{name}'"):
            change(env, "set_attr", name, 3)
    env.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("how", "name", "said"),
    [
        (
            "set_attr",
            "levle",
            r"^datamodule\.set_attr\('levle'\): Dial has no attribute 'levle'; did you mean 'level'\?$",
        ),
        ("call", "rase_by", r"Dial has no method 'rase_by'; did you mean 'raise_by'\?$"),
        ("call", "level", "level of Dial is no method; set_attr sets it"),
        ("call", "raise_by", r"raise_by of Dial raised TypeError: .*missing 1 required"),
        ("set_attr", "observation_space", "expected the name of an attribute other than"),
        ("call", "step", "expected the name of a method other than reset, step, close"),
    ],
)
def test_what_cannot_be_changed_is_one_line(backend, how, name, said):
    env = make_vector_env(DIAL, 2, backend=backend)
    with pytest.raises(ConfigError, match=said) as caught:
        change(env, how, name, *([1] if how == "set_attr" else []))
    assert "\n" not in str(caught.value)
    change(env, "set_attr", "level", 1.0)  # the copies go on
    env.close()


def test_gymnasiums_own_processes_are_reached():
    env = AsyncVectorEnv([Dial, Dial])
    change(env, "set_attr", "level", 2.0)
    change(env, "call", "raise_by", 1.0, times=3)
    env.reset(seed=1)
    observations, rewards, *_ = env.step(np.zeros(2, np.int64))
    assert rewards.tolist() == [2.0, 2.0] and observations[:, 1].tolist() == [3.0, 3.0]
    with pytest.raises(ConfigError, match="the copies of AsyncVectorEnv have no 'levle'"):
        change(env, "set_attr", "levle", 2.0)
    env.close()


def test_native_vector_environments_are_changed_as_a_whole():
    env = make_vector_env("CartPole-v1", 3, backend="vector")
    change(env, "set_attr", "force_mag", 0.0)
    env.reset(seed=1)
    left, right = (env.step(np.full(3, action)) for action in (0, 1))
    assert env.unwrapped.force_mag == 0.0 and not np.array_equal(left[0], right[0])
    with pytest.raises(
        ConfigError, match=r"CartPoleVectorEnv has no attribute 'lenth'.*env\.backend=sync steps single"
    ):
        change(env, "set_attr", "lenth", 1.0)


def test_envpool_refuses_by_name():
    pytest.importorskip("envpool")
    env = make_vector_env("CartPole-v1", 2, backend="envpool")
    with pytest.raises(ConfigError, match=r"'max_episode_steps'\): EnvPool has nothing .*env\.backend=sync or async"):
        change(env, "set_attr", "max_episode_steps", 3)
    env.close()


@pytest.mark.parametrize("recorded", [False, True])
def test_environments_in_torch_follow(recorded, monkeypatch):
    from lightning_ppo.envs import torch_envs

    class Once:
        """A recording: what was computed the first time, with what the attributes then were."""

        def __init__(self, step):
            self.step, self.gravity = step, None

        def __call__(self, *arguments):
            env = self.step.__self__
            self.gravity = env.gravity if self.gravity is None else self.gravity
            now, env.gravity = env.gravity, self.gravity
            try:
                return self.step(*arguments)
            finally:
                env.gravity = now

    monkeypatch.setattr(torch_envs, "can_record", lambda device: recorded)
    monkeypatch.setattr(torch_envs, "Recorded", Once)

    def after(gravity):
        env = TorchCartPole(2)
        env.reset(seed=1)
        env.step(torch.zeros(2, dtype=torch.int64))
        if gravity is not None:
            change(env, "set_attr", "gravity", gravity)
        env.step(torch.zeros(2, dtype=torch.int64))
        return env.state

    assert torch.equal(after(None), after(9.8)) and not torch.equal(after(9.8), after(100.0))


# ---------------------------------------------------------------- the view, the callback, other files


def test_the_view_of_environments_says_the_one_way():
    model, data = build()
    with pytest.raises(
        ConfigError, match=r"a list is one value for each copy here.*datamodule\.set_attr\('level', value\)"
    ):
        data.env.set_attr("level", [1.0, 2.0])
    with pytest.raises(
        ConfigError, match=r"datamodule\.env\.level: to be looked at; datamodule\.set_attr\('level', value\)"
    ):
        data.env.level = 3.0
    data.env.set_attr("level", 3.0)
    fit((model, data), 1)
    assert paid(model) == [[3.0], [3.0]]
    native = RolloutDataModule("CartPole-v1", num_envs=2).env
    assert native.gravity == 9.8
    for ask in ("get_attr", "call"):
        with pytest.raises(
            ConfigError, match=rf"env\.{ask}\('gravity'\): CartPoleVectorEnv has no single copies to ask"
        ):
            getattr(native, ask)("gravity")


def test_progress_is_told_before_each_rollout():
    model, data = build()
    fit((model, data), 3, callbacks=[SetProgress()])
    told = [rollout.observations[-1, :, 2].tolist() for rollout in model.rollouts]
    assert told == [pytest.approx([number / 6] * 4) for number in range(6)]


def test_progress_needs_the_hook():
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=8)
    model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 16})
    with pytest.raises(ConfigError, match=r"CartPoleVectorEnv has no method 'set_progress'"):
        make_trainer(callbacks=[SetProgress()]).fit(model, data)


def test_a_file_from_elsewhere_calls_nothing(tmp_path):
    from lightning_ppo.settings.trust import check_names

    path = tmp_path / "agent.ckpt"
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=8, backend="sync")
    model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 8})
    data.call("has_wrapper_attr", "gravity")
    trainer = make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    check_names(content, path)
    content["ppo"]["signature"] = ""
    with pytest.raises(
        CheckpointError, match=r"datamodule\.call\('has_wrapper_attr'\) names CartPole-v1, .* add --trust"
    ):
        check_names(content, path)
    check_names(content, path, ["CartPole-v1"])


def test_ranks_that_ask_for_different_changes_stop(monkeypatch):
    one, other, same = Changes(), Changes(), Changes()
    for changes, level in ((one, np.arange(2.0)), (other, np.arange(3.0)), (same, np.arange(2.0))):
        changes.add(make_change("set_attr", "level", (level,), {}), False)
    assert Changes().digest() == 0 and one.digest() == same.digest() != other.digest()

    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def with_another_rank(digest):
        there = torch.tensor([0, digest, -digest])
        monkeypatch.setattr(distributed, "max_over_ranks", lambda here: torch.maximum(here, there))

    with_another_rank(same.digest())
    distributed.raise_together(None, torch.device("cpu"), one.digest())
    with_another_rank(other.digest())
    with pytest.raises(ConfigError, match="the ranks have not asked for the same; call them on every rank"):
        distributed.raise_together(None, torch.device("cpu"), one.digest())
