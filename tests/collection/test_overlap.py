"""Rollouts collected beside learning: of one policy, exactly one update old, and nothing is lost on the way."""

import json
import multiprocessing
import signal

import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.cli import train
from lightning_ppo.policy.scoring import evaluate_rollout
from lightning_ppo.run import training
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.packing import unpack
from tests.kit.collecting import Snapshots, build
from tests.kit.commands import SMALL, rows
from tests.kit.envs import Count, vector
from tests.kit.resuming import MidEpoch, assert_same_agent
from tests.kit.signals import send
from tests.kit.training import Recording, make_trainer


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("env", "policy", "precision", "env_settings"),
    [
        pytest.param(
            *("CartPole-v1", {"core": "lstm"}, "32-true", {"backend": "sync"}), marks=pytest.mark.representative
        ),
        ("Pendulum-v1", {}, "64-true", {}),
        ("tests.kit.rich_envs:Forbidden", {"shared_trunk": True}, "bf16-mixed", {"backend": "async", "timeout": 600.0}),
        ("tests.kit.envs:Sleepy", {"dropout": 0.5}, "32-true", {"timeout": 600.0}),
        ("CartPole-v1", {"core": "transformer"}, "32-true", {"backend": "sync"}),
    ],
    ids=["lstm", "float64", "masks", "sleeps", "transformer"],
)
def test_every_rollout_is_of_the_policy_one_update_before(env, policy, precision, env_settings):
    model, data = build(env, Recording, policy=policy, env_settings=env_settings)
    seen = Snapshots()
    make_trainer(max_epochs=2, precision=precision, limit_val_batches=1.0, callbacks=[seen]).fit(model, data)
    assert [rollout.policy_version for rollout in model.rollouts] == [0, 0, 1, 2]
    assert seen.lags == [0.0, 1.0, 1.0, 1.0]
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if precision == "bf16-mixed" else {"atol": 1e-5, "rtol": 1e-5}
    context = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    for iteration, rollout in enumerate(model.rollouts):
        behaviour = seen.policies[rollout.policy_version]
        with context:
            then, _ = evaluate_rollout(behaviour, rollout)
            now, _ = evaluate_rollout(seen.policies[iteration], rollout)
        torch.testing.assert_close(then.log_probs, rollout.log_probs, **tolerance)
        torch.testing.assert_close(then.values, rollout.values, **tolerance)
        torch.testing.assert_close(then.distribution, rollout.distribution, **tolerance)
        # what the update compares with is the behaviour policy, not itself
        stale = (now.log_probs - rollout.log_probs)[rollout.valid].abs().max()
        assert stale > 1e-4 if iteration > 0 else stale < 2e-2
        # bootstraps are the behaviour critic's, too: of rows that no end separates they are the next row's values
        going = ~(rollout.terminations | rollout.truncations)[:-1] & rollout.valid[:-1]
        torch.testing.assert_close(rollout.next_values[:-1][going], rollout.values[1:][going])


@pytest.mark.usefixtures("new_interpreters")
def test_the_first_two_rollouts_are_those_of_an_untrained_policy():
    """Before anything is learnt it makes no difference who collects, and one rollout goes on where the other ended."""
    collected = []
    for overlap in (True, False):
        model, data = build("Pendulum-v1", Recording, overlap, optimizer={"learning_rate": 0.0})
        model.policy.update_statistics = lambda *arguments: None
        make_trainer().fit(model, data)
        collected.append(model.rollouts)
    for ours, theirs in zip(*collected, strict=True):
        for name in ("observations", "actions", "rewards", "log_probs", "values", "advantages", "truncations"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.ranks
@pytest.mark.parametrize(("overlap", "processes"), [(True, 1), (False, 2), (True, 3)])
def test_train_stop_resume_is_train_through_bit_for_bit(overlap, processes, tmp_path):
    """Stopped at the end of an epoch, and in the middle of one."""

    def fit(epochs, path=None, callbacks=(), save=None):
        model, data = build("Pendulum-v1", overlap=overlap, processes=processes)
        trainer = make_trainer(max_epochs=epochs, limit_val_batches=1.0, callbacks=list(callbacks))
        if callbacks:
            with pytest.raises(KeyError, match="stop here"):
                trainer.fit(model, data)
            return None
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        if save is not None:
            trainer.save_checkpoint(save)
        return model, trainer

    through = fit(3)
    assert through[0].iterations == 6
    fit(2, save=tmp_path / "end.ckpt")
    fit(3, callbacks=[MidEpoch(tmp_path / "middle.ckpt", 3)])
    for name in ("end.ckpt", "middle.ckpt"):
        assert_same_agent(*through, *fit(3, tmp_path / name))


@pytest.mark.ranks
def test_a_signal_saves_the_rollout_in_progress(tmp_path, monkeypatch):
    arguments = [
        *SMALL,
        "rollout.overlap=true",
        "total_env_steps=512",
        "env.backend=sync",
        "checkpoint.save_best=false",
    ]
    arguments += ["evaluation.final_episodes=0", "trainer.enable_progress_bar=false"]
    assert train.main([*arguments, f"run_dir={tmp_path / 'through'}"]) == 0

    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if module.iterations == 4:
                send(signal.SIGINT)

    build_trainer = training.build_trainer
    monkeypatch.setattr(
        training, "build_trainer", lambda *given: build_trainer(*given[:5], [*given[5], Interrupt()], *given[6:])
    )
    assert train.main([*arguments, f"run_dir={tmp_path / 'stopped'}"]) == 130
    monkeypatch.setattr(training, "build_trainer", build_trainer)
    saved = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    ahead = unpack(saved["RolloutDataModule"]["ranks"][0])["collector"]["ahead"]
    assert ahead["policy_version"] == saved["ppo"]["iterations"] - 1 == 3
    assert train.main([f"run_dir={tmp_path / 'stopped'}", "resume=last"]) == 0
    ends = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("through", "stopped")
    ]
    assert ends[0]["ppo"]["env_steps"] == 512
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


@pytest.mark.ranks
@pytest.mark.parametrize(("kind", "said"), [("raises", "raised in step"), ("dies", "ended by SIGKILL")])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_over_there_is_one_line_here(processes, kind, said, tmp_path, capfd, monkeypatch):
    run_dir = tmp_path / "run"
    arguments = [*SMALL, "rollout.overlap=true", f"rollout.processes={processes}", "env.id=tests.kit.envs:Touchy"]
    arguments += ["evaluation.episodes=0"]
    arguments += [f"env.kwargs={{kind: {kind}, at: 40}}", "evaluation.final_episodes=0", "total_env_steps=320"]
    assert train.main([*arguments, f"run_dir={run_dir}", "rollouts_per_epoch=100"]) == 1
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in error
    # steps 33 to 48 belong to the third rollout; the two before it were learnt from
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert (saved["ppo"]["iterations"], saved["ppo"]["env_steps"]) == (2, 128)
    assert train.main([f"run_dir={run_dir}", "resume=last", "env.kwargs={kind: raises, at: 2000}"]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] == 320
    lags = [float(row["rollout/policy_lag"]) for row in rows(run_dir / "metrics.csv") if row["loss/policy"]]
    assert lags == [0.0, 1.0, 0.0, 1.0, 1.0]  # the rollout in progress was lost


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"objective": "trpo"}, "trust region of trpo"),
        ({"objective": "policy_gradient", "update": {"minibatch_size": 16}}, "policy_gradient has no ratio"),
        ({"env": vector([Count, Count])}, "already built"),
        ({"env": vector([Count, Count]), "overlap": False, "processes": 2}, "already built"),
    ],
    ids=["trpo", "policy gradient", "built environment", "built environment in groups"],
)
def test_what_cannot_be_overlapped_is_refused(change, reason):
    env, overlap, processes = change.pop("env", "CartPole-v1"), change.pop("overlap", True), change.pop("processes", 1)
    data = RolloutDataModule(env, num_steps=16, num_envs=2, overlap=overlap, processes=processes)
    model = PPO(data.observation_space, data.action_space, **({"update": {"minibatch_size": 16}} | change))
    setting = "rollout.overlap" if overlap else "rollout.processes"
    with pytest.raises(ConfigError, match=f"{setting}: .*{reason}"):
        make_trainer().fit(model, data)
