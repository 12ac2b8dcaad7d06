"""What environments tell in `info`: success rates and means, alike for all who step, exact, and named where missing."""

import json
import logging
import multiprocessing

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from lightning_ppo import RolloutDataModule
from lightning_ppo.cli import train
from lightning_ppo.collection.info_names import InfoNames
from lightning_ppo.envs.infos import InfoReader
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.evaluation.checkpoint import evaluate
from lightning_ppo.rollout.episodes import EpisodeRecorder
from lightning_ppo.run.told import info_table
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.errors import ConfigError
from tests.kit.commands import SMALL, rows
from tests.kit.resuming import MidEpoch, assert_same_agent
from tests.kit.training import Recording, make_trainer

REACH = "tests.collection.test_infos:Reach"
NAMES = ["dist", "terms.ctrl", "rare"]
MODES = {
    "sync": {"backend": "sync"},
    "async": {"backend": "async"},
    "overlap": {"backend": "sync", "overlap": True},
    "processes": {"backend": "sync", "processes": 2},
}
NAN = float("nan")


class Reach(gymnasium.Env):
    """Episodes of 4 steps. Step t tells dist = t + action, a nested term -1, at the third step `rare` 5, and text.

    Every second episode succeeds. A reset tells a `dist` of -100, which belongs to no step.
    """

    def __init__(self, length=4):
        self.observation_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.t = self.episodes = 0
        self.length = length

    def _observation(self):
        return np.array([self.t, self.np_random.random()], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.episodes = self.episodes + 1 if seed is None else 1  # a seed begins anew
        return self._observation(), {"dist": -100.0, "terms": {"ctrl": -100.0}, "is_success": True}

    def step(self, action):
        self.t += 1
        info = {"dist": float(self.t + action), "terms": {"ctrl": -1.0}, "name": "x", "count": self.t}
        info |= {"rare": 5.0} if self.t == 3 else {}
        ended = self.t >= self.length
        info |= {"is_success": self.episodes % 2 == 0} if ended else {"is_success": True}
        return self._observation(), 1.0, ended, False, info


class Reaches(VectorEnv):
    """The same as one vector environment, of arrays or of tensors, in any mode but DISABLED for tensors."""

    def __init__(self, num_envs, mode=AutoresetMode.SAME_STEP, tensors=False, final_info=False):
        copy = Reach()
        self.metadata, self.num_envs, self.mode = {"autoreset_mode": mode}, num_envs, mode
        self.single_observation_space, self.single_action_space = copy.observation_space, copy.action_space
        self.observation_space = batch_space(copy.observation_space, num_envs)
        self.action_space = batch_space(copy.action_space, num_envs)
        self.tensors, self.final_info = tensors, final_info

    def _given(self, tree):
        if isinstance(tree, dict):
            return {key: self._given(value) for key, value in tree.items()}
        return torch.from_numpy(np.array(tree)) if self.tensors else np.array(tree)

    def _observations(self):
        return np.stack((self.t, self.t), 1).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.t, self.over = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        self.episodes = np.ones(self.num_envs)
        return self._given(self._observations()), {}

    def step(self, actions):
        actions = np.asarray(actions)
        filler = self.over & (self.mode is AutoresetMode.NEXT_STEP)
        self.t = np.where(filler, 0, self.t + 1)
        self.episodes += filler
        ended = ~filler & (self.t >= 4)
        infos = {"dist": self.t + actions, "terms": {"ctrl": np.full(self.num_envs, -1.0)}}
        infos |= {"rare": np.full(self.num_envs, 5.0), "_rare": self.t == 3}
        infos |= {"is_success": np.where(ended, self.episodes % 2 == 0, True), "gauge": np.float64(7.0)}
        final = self._observations()
        if self.mode is AutoresetMode.SAME_STEP:
            self.t, self.episodes = np.where(ended, 0, self.t), self.episodes + ended
        if self.final_info and ended.any():
            infos = {**{name: infos[name] for name in ("rare", "_rare", "gauge")}, "final_info": infos}
            infos |= {"dist": np.where(ended, -100.0, infos["final_info"]["dist"])}
            infos |= {"terms": {"ctrl": np.where(ended, -100.0, -1.0)}}
        self.over = ended
        nothing, infos = np.zeros(self.num_envs, bool), self._given(infos) | {"final_obs": self._given(final)}
        shown = self._given(self._observations())
        return shown, self._given(np.where(filler, 0.0, 1.0)), self._given(ended), self._given(nothing), infos


class Told(pl.Callback):
    """Keeps what is logged after each iteration and evaluation."""

    def __init__(self):
        self.training, self.evaluation = [], []

    def on_train_batch_end(self, trainer, module, *_):
        found = trainer.callback_metrics.items()
        self.training.append({k: float(v) for k, v in found if k.startswith(("rollout/info", "rollout/succ"))})

    def on_validation_end(self, trainer, module):
        found = trainer.callback_metrics.items()
        self.evaluation.append({k: float(v) for k, v in found if k.startswith(("eval/info", "eval/succ"))})


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def build(mode="sync", env=REACH, log_info=NAMES, **settings):
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule(
        env,
        num_envs=4 if isinstance(env, str) else None,
        num_steps=6,
        rollouts_per_epoch=2,
        evaluation={"episodes": 6, "num_envs": 2},
        seed=5,
        log_info=log_info,
        **((MODES[mode] if isinstance(env, str) else {}) | settings),
    )
    update = {"epochs": 1, "minibatch_size": 6}
    return Recording(data.observation_space, data.action_space, update=update, total_env_steps=1000), data


def fit(pair, epochs=2, path=None, callbacks=(), save=None, **kwargs):
    trainer = make_trainer(max_epochs=epochs, limit_val_batches=1.0, callbacks=list(callbacks), **kwargs)
    trainer.fit(*pair, ckpt_path=path, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return pair[0], trainer


def expected_of(rollouts):
    """Return what should be logged after the last of some rollouts of all copies from their first step on, by hand."""
    actions = torch.cat([rollout.actions for rollout in rollouts])
    valid = torch.cat([rollout.valid for rollout in rollouts])
    latest = len(rollouts[-1].actions)
    dists, sums, successes, recent = [], [], [], []
    for column in range(actions.shape[1]):
        t, total, episode = 0, 0.0, 1
        for row, action in enumerate(actions[:, column].tolist()):
            if not valid[row, column]:
                continue
            t += 1
            total += t + action
            dists.append(t + action)
            if row >= len(actions) - latest:
                recent.append(t + action)
            if t == 4:
                sums.append(total)
                successes.append(episode % 2 == 0)
                t, total, episode = 0, 0.0, episode + 1
    return {
        "rollout/success_rate": np.mean(successes),
        "rollout/info/dist_per_episode": np.mean(sums),
        "rollout/info/dist_per_step": np.mean(recent),
        "rollout/info/terms.ctrl_per_episode": -4.0,
        "rollout/info/terms.ctrl_per_step": -1.0,
        "rollout/info/rare_per_episode": 5.0,
        "rollout/info/rare_per_step": 5.0,
    }


GIVEN = {
    "native": lambda: Reaches(4),
    "native with final_info": lambda: Reaches(4, final_info=True),
    "native NEXT_STEP": lambda: Reaches(4, AutoresetMode.NEXT_STEP),
    "torch": lambda: Reaches(4, tensors=True),
    "torch with final_info": lambda: Reaches(4, tensors=True, final_info=True),
    "torch NEXT_STEP": lambda: Reaches(4, AutoresetMode.NEXT_STEP, tensors=True),
    "given NEXT_STEP": lambda: SyncVectorEnv([Reach] * 4),
    "given DISABLED": lambda: SyncVectorEnv([Reach] * 4, autoreset_mode=AutoresetMode.DISABLED),
}


@pytest.mark.parametrize("env", [*MODES, *GIVEN])
def test_means_are_those_of_the_steps_and_episodes(env):
    noted = Told()
    pair = build(env) if env in MODES else build(env=GIVEN[env](), evaluation_env=GIVEN[env](), stagger=False)
    model, _ = fit(pair, 2, callbacks=[noted])
    assert len(model.rollouts) == 4
    for number, told in enumerate(noted.training, 1):
        assert told == pytest.approx(expected_of(model.rollouts[:number]))
    for rollout in model.rollouts:
        assert list(rollout.infos) == NAMES
        assert torch.equal(rollout.infos["dist"].isnan(), ~rollout.valid)
        assert (~rollout.infos["rare"].isnan()).any() and rollout.infos["rare"].isnan().any()
    # evaluations start anew, so of three episodes of each copy the second succeeds
    for told in noted.evaluation:
        assert told["eval/success_rate"] == pytest.approx(1 / 3)
        assert told["eval/info/terms.ctrl_per_episode"] == -4.0 and told["eval/info/terms.ctrl_per_step"] == -1.0
        assert told["eval/info/rare_per_episode"] == told["eval/info/rare_per_step"] == 5.0
        assert told["eval/info/dist_per_episode"] == pytest.approx(4 * told["eval/info/dist_per_step"])
        assert 10.0 <= told["eval/info/dist_per_episode"] <= 14.0


@pytest.mark.parametrize("log_info", [NAMES, "auto"])
@pytest.mark.parametrize("mode", MODES)
def test_resuming_is_exact(mode, log_info, tmp_path):
    path, noted = tmp_path / "agent.ckpt", [Told(), Told(), Told()]
    through = fit(build(mode, log_info=log_info), callbacks=[noted[0]])
    stopped = build(mode, log_info=log_info)
    with pytest.raises(KeyError, match="stop here"):
        fit(stopped, callbacks=[noted[1], MidEpoch(path, 3)])
    stopped[1].teardown("fit")
    resumed = fit(build(mode, log_info=log_info), 2, path, callbacks=[noted[2]])
    assert_same_agent(*through, *resumed)
    assert noted[0].training[3:] == noted[2].training and noted[0].evaluation[1:] == noted[2].evaluation


def test_what_is_logged_first_after_resuming_has_no_sums_of_episodes_whose_beginning_was_not_heard(tmp_path):
    path = tmp_path / "agent.ckpt"
    fit(build(log_info=[]), 1, save=path, limit_train_batches=1)  # six steps of episodes of four
    model, data = build()
    noted = Told()
    fit((model, data), 2, path, callbacks=[noted], limit_train_batches=1)
    # one episode of each copy ended in it, of whose first steps nobody knows what they would have told
    first = model.rollouts[0]
    assert first.episodes.lengths.tolist()[:4] == [4, 4, 4, 4]
    assert noted.training[0]["rollout/info/dist_per_step"] == pytest.approx(float(first.infos["dist"].mean()))
    assert first.episodes.info_sums["dist"].isnan().tolist() == [True] * 4 + [False] * 4


def test_auto_takes_the_numbers_of_the_first_step_and_says_so(caplog):
    with caplog.at_level(logging.INFO):
        model, _ = fit(build(log_info="auto"), 1)
    assert list(model.rollouts[0].infos) == ["dist", "terms.ctrl"]
    said = [record.getMessage() for record in caplog.records if "log_info" in record.getMessage()]
    assert said == ["env.log_info=auto logs dist, terms.ctrl"]
    many = InfoReader("auto", 2)
    many.values({f"x{number}": np.zeros(2) for number in range(40)} | {"_mask": np.zeros(2)}, np.zeros(2, bool))
    assert many.names == tuple(f"x{number}" for number in range(32))


def test_what_nobody_tells_is_one_line(caplog):
    fit(build(log_info=["dist", "dits"], mode="processes"), 2)
    said = [record.getMessage() for record in caplog.records if "log_info" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("env.log_info: no info of a whole episode tells 'dits'; `")


@pytest.mark.parametrize(
    ("env", "name", "said"),
    [
        (
            lambda: SyncVectorEnv([Reach] * 2),
            "name",
            r"env\.log_info: info\['name'\] is object of shape \(2,\), expected",
        ),
        (lambda: Reaches(2), "final_obs", r"info\['final_obs'\] is float32 of shape \(2, 2\), expected one number"),
        (lambda: Reaches(2, tensors=True), "final_obs", r"info\['final_obs'\] is torch\.float32 of shape \(2, 2\)"),
    ],
)
def test_what_is_no_number_is_one_line(env, name, said):
    stepper = make_stepper(env(), "auto", [1, 2], log_info=[name])
    actions = np.zeros(stepper.env.num_envs, np.int64)
    with pytest.raises(ConfigError, match=said) as caught:
        stepper.step(torch.from_numpy(actions) if stepper.takes_tensors else actions)
    assert "\n" not in str(caught.value)


def test_one_number_for_all_copies_belongs_to_no_episode():
    for tensors in (False, True):
        env = [Reaches(4, tensors=tensors) for _ in range(2)]
        noted = Told()
        pair = build(env=env[0], evaluation_env=env[1], stagger=False, log_info=["gauge"])
        model, _ = fit(pair, 1, callbacks=[noted])
        assert set(model.rollouts[0].infos["gauge"].flatten().tolist()) == {7.0}
        assert noted.training[-1]["rollout/info/gauge_per_step"] == 7.0
        assert "rollout/info/gauge_per_episode" not in noted.training[-1]


def test_nothing_is_told_where_nothing_is_asked_for_but_success():
    noted = Told()
    model, _ = fit(build(log_info=[]), 2, callbacks=[noted])
    assert noted.training[-1] == {"rollout/success_rate": expected_of(model.rollouts)["rollout/success_rate"]}
    assert model.rollouts[0].infos == {} and noted.evaluation[-1] == {"eval/success_rate": pytest.approx(1 / 3)}
    silent = Told()
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=64, rollouts_per_epoch=1)
    fit((Recording(data.observation_space, data.action_space), data), 1, callbacks=[silent])
    assert silent.training == [{}] and silent.evaluation == [{}]


def test_sums_over_episodes_that_span_rollouts():
    recorder = EpisodeRecorder(1)
    values = torch.tensor([[1.0], [2.0], [NAN], [4.0], [8.0], [16.0]])
    ended = torch.tensor([[False], [True], [False], [False], [True], [False]])
    valid = torch.ones(6, 1, dtype=torch.bool)
    found = [
        recorder.add(torch.ones(3, 1), ended[t : t + 3], valid[:3], True, infos={"x": values[t : t + 3]})
        for t in (0, 3)
    ]
    # 1 + 2, then 4 + 8, of which the first step told nothing
    assert [e.info_sums["x"].tolist() for e in found] == [[3.0], [12.0]]
    assert [e.info_steps["x"].tolist() for e in found] == [[2.0], [2.0]]
    assert recorder.infos["x"].tolist() == [[16.0, 1.0]]
    again = EpisodeRecorder(1)
    again.load_state_dict(recorder.state_dict(), ["x", "y"])
    ends = torch.tensor([[True], [True]])
    more = {name: torch.full((2, 1), 1.0) for name in ("x", "y")}
    episodes = again.add(torch.ones(2, 1), ends, valid[:2], True, infos=more)
    assert episodes.info_sums["x"].tolist() == [17.0, 1.0]
    assert episodes.info_sums["y"].isnan().tolist() == [True, False] and episodes.info_sums["y"][1] == 1.0


def test_settings():
    assert EnvConfig(log_info="dist").log_info == ["dist"] and EnvConfig(log_info="auto").log_info == "auto"
    with pytest.raises(ConfigError, match=r"env\.log_info: expected auto or a list of names, got \[3\]"):
        EnvConfig(log_info=[3])
    assert InfoNames(["a"]).names == ("a",)


def test_a_run_ends_with_a_table(tmp_path, capsys):
    arguments = [*SMALL, f"env.id={REACH}", "env.log_info=[dist,terms.ctrl]", "total_env_steps=512"]
    assert train.main([*arguments, f"run_dir={tmp_path}", "evaluation.final_episodes=4"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["info"]["terms.ctrl"] == {
        "train_per_step": -1.0,
        "train_per_episode": -4.0,
        "eval_per_step": -1.0,
        "eval_per_episode": -4.0,
    }
    assert 0.0 < summary["train_success_rate"] < 1.0 and "eval_success_rate" in summary
    printed = capsys.readouterr().out
    assert info_table(summary).strip() in printed
    firsts = [line.split()[0] for line in info_table(summary).strip().splitlines()]
    assert firsts == ["info", "success", "dist", "terms.ctrl"]
    assert info_table({}) == ""
    logged = [row["rollout/info/dist_per_step"] for row in rows(tmp_path / "metrics.csv")]
    assert all(2.0 < float(value) < 4.0 for value in logged if value) and any(logged)
    played = evaluate(str(tmp_path / "checkpoints" / "last.ckpt"), episodes=4, num_envs=2)
    assert played["info"]["terms.ctrl_per_episode"] == -4.0 and played["success_rate"] == 0.5
