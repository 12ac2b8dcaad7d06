"""A checkpoint is the whole agent: it loads as plain data, acts alone, and resumes bit for bit."""

import errno
import os
import random
from pathlib import Path

import gymnasium
import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.envs.state import get_env_state, set_env_state
from lightning_ppo.support.checkpoint_files import AtomicCheckpointIO, read_checkpoint, read_newest, versions
from lightning_ppo.support.errors import CheckpointError
from lightning_ppo.support.packing import pack, unpack
from tests.kit.resuming import MidEpoch, Planted, assert_same_agent, same
from tests.kit.training import SETTINGS, make_trainer


def build(env: str, seed: int = 5, rollouts_per_epoch: int = 2, backend: str = "auto"):
    pl.seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        env=env, num_envs=4, num_steps=16, rollouts_per_epoch=rollouts_per_epoch, seed=seed, backend=backend
    )
    return PPO(data.observation_space, data.action_space, **SETTINGS), data


def fit(env: str, epochs: int, path: Path | None = None, save: Path | None = None, **kwargs):
    model, data = build(env, **kwargs)
    trainer = make_trainer(max_epochs=epochs)
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return model, trainer


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_train_stop_resume_is_train_through_bit_for_bit(env, tmp_path):
    path = tmp_path / "agent.ckpt"
    through = fit(env, 4)
    fit(env, 2, save=path)
    pl.seed_everything(99, verbose=False)
    resumed = fit(env, 4, path)
    assert through[0].iterations == 8
    assert_same_agent(*through, *resumed)


@pytest.mark.parametrize(
    ("iteration", "backend"), [(1, "auto"), (2, "auto"), (3, "auto"), (4, "auto"), (5, "auto"), (2, "async")]
)
def test_resuming_in_the_middle_of_an_epoch(iteration, backend, tmp_path):
    """Epochs have 3 iterations, so iterations 1, 2, 4 and 5 lie inside one and 3 at its end."""
    path = tmp_path / "agent.ckpt"
    settings = {"rollouts_per_epoch": 3, "backend": backend}
    through = fit("CartPole-v1", 2, **settings)
    model, data = build("CartPole-v1", **settings)
    with pytest.raises(KeyError, match="stop here"):
        make_trainer(max_epochs=2, callbacks=[MidEpoch(path, iteration)]).fit(model, data)
    resumed = fit("CartPole-v1", 2, path, **settings)
    assert resumed[0].iterations == 6
    assert_same_agent(*through, *resumed)


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize("env", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5"])
def test_mujoco_resumes_bit_for_bit(env, tmp_path):
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    path = tmp_path / "agent.ckpt"
    through = fit(env, 4)
    fit(env, 2, save=path)
    assert_same_agent(*through, *fit(env, 4, path))


def test_environment_without_readable_state_restarts_episodes_and_says_so(tmp_path, caplog):
    path = tmp_path / "agent.ckpt"
    fit("tests.kit.envs:Engine", 1, save=path)
    model, data = build("tests.kit.envs:Engine")
    with caplog.at_level("INFO", logger="lightning_ppo"):
        make_trainer(max_epochs=2).fit(model, data, ckpt_path=path, weights_only=True)
    assert "Episodes in progress were restarted" in caplog.text
    assert model.iterations == 4


def test_loading_restores_every_tensor_and_the_actions(tmp_path):
    model, _ = fit("Pendulum-v1", 1, save=tmp_path / "agent.ckpt")
    observations = torch.randn(10, 3)
    actions = model.policy.predict(observations)[0]
    loaded = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(loaded.policy.predict(observations)[0], actions)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.normal_()
    assert not torch.equal(loaded.policy.predict(observations)[0], actions)  # the comparison can fail
    assert loaded.env_steps == model.env_steps
    assert loaded.policy.inputs.normalizers[""].count == model.policy.inputs.normalizers[""].count > 0


def test_missing_and_unknown_weights_are_refused(tmp_path):
    fit("Pendulum-v1", 1, save=tmp_path / "agent.ckpt")
    content = torch.load(tmp_path / "agent.ckpt", weights_only=True)
    content["state_dict"]["policy.stranger"] = content["state_dict"].pop("policy.network.actor_output.bias")
    torch.save(content, tmp_path / "broken.ckpt")
    with pytest.raises(RuntimeError, match=r"(?s)actor_output.bias.*stranger"):
        PPO.load_from_checkpoint(tmp_path / "broken.ckpt", weights_only=True)


def test_at_train_start_after_resume_everything_equals_the_file(tmp_path):
    fit("CartPole-v1", 2, save=tmp_path / "agent.ckpt")
    saved = torch.load(tmp_path / "agent.ckpt", weights_only=True)
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            seen["epoch"], seen["global_step"] = trainer.current_epoch, trainer.global_step
            optimizer = trainer.optimizers[0].state_dict()
            seen["lr"] = optimizer["param_groups"][0]["lr"]
            seen["moments"] = {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer["state"].items()}

    model, data = build("CartPole-v1")
    make_trainer(max_epochs=3, callbacks=[Look()]).fit(
        model, data, ckpt_path=tmp_path / "agent.ckpt", weights_only=True
    )
    assert (seen["epoch"], seen["global_step"]) == (2, saved["global_step"]) == (2, 2 * 2 * 2 * 4)
    optimizer = saved["optimizer_states"][0]
    assert seen["lr"] == optimizer["param_groups"][0]["lr"] != 1e-3  # steered by KL, and kept
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(value, seen["moments"][index][name])


def test_a_failing_write_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoint_io = AtomicCheckpointIO()
    checkpoint_io.save_checkpoint({"generation": 1}, path)

    def out_of_space(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", out_of_space)
    with pytest.raises(CheckpointError, match=r"last.ckpt: cannot be written: No space left.*before is intact"):
        checkpoint_io.save_checkpoint({"generation": 2}, path)
    assert torch.load(path, weights_only=True) == {"generation": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_damaged_files_are_one_line_errors_and_nothing_is_executed(tmp_path):
    good = tmp_path / "best.ckpt"
    fit("Pendulum-v1", 1, save=good)
    content = good.read_bytes()
    bad = tmp_path / "last.ckpt"
    for cut in range(0, len(content), len(content) // 20):
        bad.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"last.ckpt: damaged.*best.ckpt beside it is intact") as error:
            read_checkpoint(bad)
        assert "\n" not in str(error.value)
    sentinel = tmp_path / "sentinel"
    torch.save({"ppo": Planted(sentinel), "hyper_parameters": {}}, bad)
    with pytest.raises(CheckpointError):
        read_checkpoint(bad)
    assert not sentinel.exists()
    torch.save({"something": "else"}, bad)
    with pytest.raises(CheckpointError, match="not a checkpoint of lightning_ppo"):
        read_checkpoint(bad)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    good, bad = tmp_path / "agent.ckpt", tmp_path / "bad" / "agent.ckpt"
    bad.parent.mkdir()
    fit("Pendulum-v1", 1, save=good)
    content, reference = good.read_bytes(), read_checkpoint(good)
    generator, noticed = random.Random(0), 0
    for _ in range(100):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        bad.write_bytes(flipped)
        try:
            found = read_checkpoint(bad)
        except CheckpointError as error:
            noticed += 1
            assert "\n" not in str(error)
        else:
            assert same(found, reference)
    assert noticed > 50


def test_former_versions_are_kept_and_the_newest_whole_one_is_read(tmp_path):
    path, checkpoint_io = tmp_path / "last.ckpt", AtomicCheckpointIO(keep=3)
    for generation in range(5):
        checkpoint_io.save_checkpoint({"ppo": generation, "hyper_parameters": {}}, path)
    assert [p.name for p in versions(path)] == ["last.ckpt", "last-1.ckpt", "last-2.ckpt"]
    assert sorted(os.listdir(tmp_path)) == ["last-1.ckpt", "last-2.ckpt", "last.ckpt"]
    assert [read_checkpoint(p)["ppo"] for p in versions(path)] == [4, 3, 2]
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "last-1.ckpt").unlink()
    found, content, problems = read_newest(path)
    assert (found.name, content["ppo"]) == ("last-2.ckpt", 2)
    assert "last.ckpt: damaged" in problems and "\n" not in problems
    found.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last.ckpt: damaged.*last-2.ckpt: damaged"):
        read_newest(path)


def test_another_number_of_environments_reseeds_with_a_warning(tmp_path):
    fit("CartPole-v1", 1, save=tmp_path / "agent.ckpt")
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule(env="CartPole-v1", num_envs=8, num_steps=8, rollouts_per_epoch=2, seed=5)
    model = PPO(data.observation_space, data.action_space, **SETTINGS)
    with pytest.warns(UserWarning, match="4 environments per rank, this run 8"):
        make_trainer(max_epochs=2).fit(model, data, ckpt_path=tmp_path / "agent.ckpt", weights_only=True)
    assert model.iterations == 4


def test_a_file_of_two_ranks_goes_on_with_one_and_a_warning(tmp_path):
    fit("CartPole-v1", 1, save=tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    for owner in ("ppo", "RolloutDataModule"):
        content[owner]["ranks"] = content[owner]["ranks"] * 2
    torch.save(content, tmp_path / "two.ckpt")
    model, data = build("CartPole-v1")
    with pytest.warns(UserWarning, match="written by 2 ranks, this run has 1: environments and sampling are seeded"):
        make_trainer(max_epochs=2).fit(model, data, ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert model.iterations == 4
    again, data = build("CartPole-v1")
    make_trainer(max_epochs=2).fit(again, data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_another_backend_reseeds_with_a_warning(tmp_path):
    fit("CartPole-v1", 1, save=tmp_path / "agent.ckpt")
    model, data = build("CartPole-v1", backend="sync")
    with pytest.warns(UserWarning, match="state of a CartPoleVectorEnv, this run steps a SyncVectorEnv"):
        make_trainer(max_epochs=2).fit(model, data, ckpt_path=tmp_path / "agent.ckpt", weights_only=True)
    assert model.iterations == 4


def test_random_states_of_another_kind_of_device_are_drawn_anew_with_a_warning(tmp_path):
    fit("CartPole-v1", 1, save=tmp_path / "agent.ckpt")
    content = torch.load(tmp_path / "agent.ckpt", weights_only=True)
    states = unpack(content["RolloutDataModule"]["ranks"][0])
    states["collector"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # as on a GPU
    content["RolloutDataModule"]["ranks"][0] = pack(states)
    content["ppo"]["ranks"][0]["shuffle"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(content, tmp_path / "elsewhere.ckpt")
    with pytest.warns(UserWarning, match="another kind of device: (actions|minibatches) are drawn with") as warned:
        model, _ = fit("CartPole-v1", 2, tmp_path / "elsewhere.ckpt")
    assert sum("another kind of device" in str(warning.message) for warning in warned) == 2
    assert model.iterations == 4


def test_compiled_and_eager_agents_load_into_each_other(tmp_path):
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule(env="CartPole-v1", num_envs=4, num_steps=16, rollouts_per_epoch=1, seed=5)
    model = PPO(data.observation_space, data.action_space, compile=True, **SETTINGS)
    trainer = make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    assert not any("_orig_mod" in name for name in model.state_dict())
    resumed, _ = fit("CartPole-v1", 2, tmp_path / "agent.ckpt", rollouts_per_epoch=1)
    assert resumed.iterations == 2


def test_resuming_twice_into_the_same_objects_is_exact_too(tmp_path):
    path = tmp_path / "agent.ckpt"
    fit("CartPole-v1", 2, save=path)
    model, data = build("CartPole-v1")
    states = []
    for _ in range(2):
        trainer = make_trainer(max_epochs=4)
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        assert len(model.recent_returns) <= 100 and model.iterations == 8
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_hooks_on_resuming_come_in_lightnings_order(tmp_path):
    path, seen = tmp_path / "agent.ckpt", []
    fit("CartPole-v1", 1, save=path)

    class Noting(PPO):
        def setup(self, stage):
            seen.append("setup")

        def on_load_checkpoint(self, checkpoint):
            seen.append("on_load_checkpoint")
            super().on_load_checkpoint(checkpoint)

        def configure_optimizers(self):
            seen.append("configure_optimizers")
            return super().configure_optimizers()

        def on_fit_start(self):
            seen.append("on_fit_start")
            super().on_fit_start()

        def on_train_start(self):
            seen.append("on_train_start")
            super().on_train_start()

    class Note(pl.Callback):
        def on_load_checkpoint(self, trainer, module, checkpoint):
            seen.append("callback on_load_checkpoint")

    _, data = build("CartPole-v1")
    model = Noting(data.observation_space, data.action_space, **SETTINGS)
    make_trainer(max_epochs=2, callbacks=[Note()]).fit(model, data, ckpt_path=path, weights_only=True)
    assert seen == [
        "setup",
        "on_load_checkpoint",
        "callback on_load_checkpoint",
        "configure_optimizers",
        "on_fit_start",
        "on_train_start",
    ]


def test_mujoco_state_that_is_restored_is_saved_alike():
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    one, other = gymnasium.make("HalfCheetah-v5"), gymnasium.make("HalfCheetah-v5")
    one.reset(seed=1)
    one.action_space.seed(1)
    other.reset(seed=2)
    for _ in range(60):  # feet on and off the ground: the number of constraints changes
        one.step(one.action_space.sample())
        state, _ = get_env_state(one)
        set_env_state(other, state)
        assert same(get_env_state(other)[0], state)
