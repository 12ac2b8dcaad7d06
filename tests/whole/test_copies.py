"""Agents that are pickled, copied, sent to other processes; what a checkpoint cannot hold; files that are whole."""

import copy
import io
import pickle
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.settings.algorithm import UpdateConfig
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.checkpoint_files import AtomicCheckpointIO, read_checkpoint, read_newest
from lightning_ppo.support.errors import CheckpointError
from tests.kit.preloaded import Command
from tests.kit.resuming import same
from tests.kit.training import make_pair, make_trainer


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved_whole, "copy": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"objective": "trpo"}, {"policy": {"core": "lstm"}}),
        pytest.param({"compile": True}, marks=pytest.mark.compiled),
    ],
    ids=["plain", "trpo", "lstm", "compiled"],
)
def test_a_copy_goes_on_like_its_original(way, settings):
    """Untrained, in the middle of a fit, and after it."""
    copies = []

    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            copies.append((WAYS[way](module), {k: v.clone() for k, v in module.state_dict().items()}))

    model, data = make_pair(rollouts_per_epoch=2, **settings)
    observations = torch.randn(5, 4)
    untouched = WAYS[way](model)
    assert torch.equal(untouched.policy.predict(observations)[0], model.policy.predict(observations)[0])
    make_trainer(callbacks=[Copies()]).fit(model, data)
    assert [made.iterations for made, _ in copies] == [1, 2]
    assert all(same(made.state_dict(), state) for made, state in copies)
    after = []
    for agent in (model, WAYS[way](model)):
        torch.manual_seed(7)
        _, data = make_pair(rollouts_per_epoch=2)
        make_trainer().fit(agent, data)
        after.append((agent.state_dict(), agent.env_steps, list(agent.recent_returns)))
    assert same(*after) and after[0][1] == model.env_steps


def test_a_data_module_is_copied_without_what_it_has_built():
    _, data = make_pair("Acrobot-v1")
    again = pickle.loads(pickle.dumps(data))
    assert data.env is not again.env and again.observation_space == data.observation_space
    assert same(dict(again.hparams), dict(data.hparams))


def fit_in_processes(strategy: str, backend: str) -> None:
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=16, rollouts_per_epoch=3, backend=backend)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 32})
    before = model.policy.network.actor_output.weight.detach().clone()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(model, data)
    moved = not bool((model.policy.network.actor_output.weight == before).all())
    print("found", model.env_steps, model.iterations, model.policy.version, moved, len(model.recent_returns) > 0)


@pytest.mark.ranks
@pytest.mark.parametrize(("strategy", "backend"), [("ddp_spawn", "sync"), ("ddp_notebook", "async")])
def test_processes_that_a_trainer_launches_report_to_their_parent(strategy, backend):
    _, printed, errors = Command(fit_in_processes, strategy, backend).wait(240)
    assert "found 192 3 3 True True" in printed, errors[-2000:]


# ---------------------------------------------------------------- hyperparameters


class Saving(PPO):
    """Ends its constructor as Lightning's documentation does, and looks at its spaces before that."""

    def __init__(self, observation_space, action_space, width=8, teacher=None, goal_space=None, update=None):
        super().__init__(observation_space, action_space, update=update)
        self.extra = nn.Linear(observation_space.shape[0], width)
        self.goal_space = goal_space
        self.save_hyperparameters()


class Forwarding(PPO):
    """Takes whatever PPO takes."""

    def __init__(self, *args, width=8, **kwargs):
        super().__init__(*args, **kwargs)
        self.width = width
        self.save_hyperparameters()


class Teacher:
    """Something that a file cannot hold."""


UPDATE = UpdateConfig(epochs=1, minibatch_size=64, clip_range=Schedule(start=0.25))


def test_a_subclass_that_saves_its_arguments_is_loaded(tmp_path):
    _, data = make_pair()
    space = gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(3))
    model = Saving(data.observation_space, data.action_space, width=np.int64(5), goal_space=space, update=UPDATE)
    trainer = make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Saving.load_from_checkpoint(tmp_path / "last.ckpt")
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.goal_space == space and loaded.extra.out_features == 5
    assert loaded.update_settings.schedules()["clip_range"](0.0) == 0.25
    assert type(model.hparams["observation_space"]) is gymnasium.spaces.Box  # as the user gave it


def test_a_subclass_that_forwards_its_arguments_is_loaded(tmp_path):
    _, data = make_pair()
    model = Forwarding(data.observation_space, data.action_space, width=5, update=UPDATE)
    trainer = make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Forwarding.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.width == 5 and loaded.observation_space == model.observation_space
    assert loaded.update_settings.epochs == 1


def test_arguments_that_a_file_cannot_hold_are_named_once(tmp_path):
    _, data = make_pair()
    model = Saving(data.observation_space, data.action_space, teacher=Teacher(), update=UPDATE)
    trainer = make_trainer()
    with pytest.warns(
        UserWarning, match=r"plain data only, so teacher \(Teacher\) is left out; give it again on loading"
    ) as told:
        trainer.fit(model, data)
    assert sum("plain data" in str(line.message) for line in told) == 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    teacher = Teacher()
    assert Saving.load_from_checkpoint(tmp_path / "last.ckpt", teacher=teacher).hparams["teacher"] is teacher


def test_what_has_a_plain_form_gets_it():
    found, left_out = plain(
        {
            "number": np.float32(0.5),
            "path": Path("a/b"),
            "pair": (1, [2, None]),
            "space": gymnasium.spaces.Discrete(4, start=2),
            "update": UPDATE,
            "nested": {"list": [1, Teacher()], "array": np.zeros(3), 7: "seven"},
        }
    )
    assert (found["number"], found["path"], found["pair"]) == (0.5, "a/b", (1, [2, None]))
    assert found["space"] == {"kind": "Discrete", "n": 4, "start": 2}
    assert found["update"]["clip_range"] == {"kind": "constant", "start": 0.25}
    assert found["nested"] == {7: "seven"}
    assert left_out == {"nested.list.1": "Teacher", "nested.array": "ndarray"}


def test_a_whole_file_that_cannot_be_loaded_is_not_called_damaged(tmp_path):
    good = {"ppo": 1, "hyper_parameters": {}}
    checkpoint_io = AtomicCheckpointIO(keep=2)
    path = tmp_path / "last.ckpt"
    checkpoint_io.save_checkpoint(good, path)
    for content, said in (
        ({**good, "teacher": Teacher()}, r"last.ckpt: whole, but holds objects \(tests\.whole\.test_copies\.Teacher\)"),
        ({"state_dict": {}}, "last.ckpt: not a checkpoint of lightning_ppo$"),
    ):
        checkpoint_io.save_checkpoint(content, path)
        for read in (read_checkpoint, read_newest):  # the version before it is whole, too
            with pytest.raises(CheckpointError, match=said) as caught:
                read(path)
            assert "damaged" not in str(caught.value) and "beside it" not in str(caught.value)
            assert "\n" not in str(caught.value)
        checkpoint_io.save_checkpoint(good, path)
    checkpoint_io.save_checkpoint(good, path)
    path.write_bytes(path.read_bytes()[:-9])
    assert read_newest(path)[0].name == "last-1.ckpt"
