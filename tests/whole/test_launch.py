"""Launchers and what befalls their processes: mismatches, signals, requeueing, a rank that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ppo.cli import train
from lightning_ppo.envs.stagger import first_lengths
from lightning_ppo.run.stopping import requeue
from lightning_ppo.support.randomness import derive_seeds
from tests.kit import rank_events
from tests.kit.commands import SMALL, rows
from tests.kit.once import once
from tests.kit.paths import ROOT
from tests.kit.preloaded import Command, run_ranks
from tests.kit.resuming import differences

SLURM = {"SLURM_JOB_ID": "4242", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, *map(str, arguments)]
    environment = {**ENVIRONMENT, "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, [], "trainer.devices: is 1, but torchrun started 2"),
        (
            TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
            ["trainer.devices=2", "trainer.strategy=ddp"],
            "trainer.devices: is 2, but torchrun started 1; set trainer.devices=1, or --nproc_per_node=2",
        ),
        (
            TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            ["trainer.devices=2", "trainer.strategy=ddp"],
            "trainer.num_nodes: is 1, but torchrun started 2; set trainer.num_nodes=2, or --nnodes=1",
        ),
        (
            SLURM | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"},
            ["trainer.devices=2", "trainer.strategy=ddp"],
            "trainer.devices: is 2, but SLURM started 4; set trainer.devices=4, or --ntasks-per-node=2",
        ),
        (SLURM | {"SLURM_NTASKS": "2"}, [], "Use `--ntasks-per-node=2` instead"),
        (
            SLURM | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "2"},
            ["trainer.devices=2", "trainer.strategy=ddp"],
            "SLURM: started 1 processes, not 2 on each of 1 nodes",
        ),
        ({}, ["trainer.num_nodes=2", "trainer.strategy=ddp"], "trainer.num_nodes: 2 nodes need a launcher on each"),
    ],
)
def test_a_mismatch_of_launcher_and_settings_is_an_error_at_once(
    environment, settings, message, tmp_path, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    assert train.main([*SMALL, *settings, f"run_dir={run_dir}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not run_dir.exists()


@pytest.fixture
def scontrol(tmp_path, monkeypatch) -> Path:
    """Put an scontrol on the PATH that writes its arguments to the file which is returned."""
    called, folder = tmp_path / "called", tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return called


def test_requeueing_names_job_or_array_task(scontrol, monkeypatch):
    requeue()
    assert not scontrol.exists()  # outside of SLURM
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4200")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    requeue()
    assert scontrol.read_text() == "requeue 4242\nrequeue 4200_7\n"


class Ranks:
    """Two ranks started as srun starts them."""

    def __init__(self, *arguments: str) -> None:
        port = str(20000 + os.getpid() % 20000)
        shared = SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "MASTER_PORT": port}
        shared |= {"MASTER_ADDR": "127.0.0.1"}
        own = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
        command = [*SMALL, *arguments, "trainer.devices=2"]
        self.processes = [Command(train.main, command, **(shared | names)) for names in own]

    def wait(self) -> list[tuple[int, str]]:
        ended = [process.wait(120) for process in self.processes]
        return [(code, errors) for code, _, errors in ended]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The directory of a run of two ranks that nothing happened to."""

    def make(folder: Path) -> None:
        for code, errors in Ranks("env.id=CartPole-v1", f"run_dir={folder / 'run'}", "total_env_steps=3840").wait():
            assert code == 0, errors

    return once(tmp_path_factory, "undisturbed", make) / "run"


@pytest.mark.ranks
def test_returns_are_those_of_the_latest_hundred_episodes_of_all_ranks(undisturbed):
    saved = torch.load(undisturbed / "checkpoints" / "last.ckpt", weights_only=True)["ppo"]["ranks"]
    assert [len(rank["recent_returns"]) for rank in saved] == [50, 50]
    mean = np.mean([rank["recent_returns"] for rank in saved])
    summary = json.loads((undisturbed / "summary.json").read_text())
    found = [row["rollout/return_mean"] for row in rows(undisturbed / "metrics.csv")]
    logged = [float(value) for value in found if value]
    assert summary["train_return_mean"] == pytest.approx(mean) and logged[-1] == pytest.approx(mean, rel=1e-6)


@pytest.mark.ranks
def test_a_signal_to_one_rank_saves_requeues_and_stops_all(tmp_path, scontrol):
    run_dir = tmp_path / "run"
    arguments = ["env.id=Pendulum-v1", f"run_dir={run_dir}", "resume=auto"]
    ranks = Ranks(*arguments, "rollouts_per_epoch=100000")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (run_dir / "metrics.csv").exists():
        time.sleep(0.02)
    os.kill(ranks.processes[1].pid, signal.SIGUSR1)
    for code, errors in ranks.wait():
        assert code == 143 and "Traceback" not in errors, errors
    assert scontrol.read_text() == "requeue 4242\n"
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["ppo"]["env_steps"]
    assert saved == int(rows(run_dir / "metrics.csv")[-1]["step"]) > 0
    # the same command again, as the requeued job gives it
    for code, errors in Ranks(*arguments, "rollouts_per_epoch=2", f"total_env_steps={saved + 256}").wait():
        assert code == 0, errors
    steps = [int(row["step"]) for row in rows(run_dir / "metrics.csv") if row["loss/policy"]]
    assert steps == list(range(128, saved + 257, 128))


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """What two launched ranks made of what happened, one after the other."""
    out = tmp_path_factory.mktemp("events") / "out"
    run_ranks(2, rank_events.main, str(out))
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(2)]


WAYS = ["sync", "async", "overlap"]


@pytest.mark.ranks
def test_what_happens_on_one_rank_stops_none_or_all(events):
    first, second = events
    for event in first:
        assert torch.equal(first[event]["weights"], second[event]["weights"]), event
        assert first[event]["steps"] == second[event]["steps"], event
    steps = {event: found["steps"] for event, found in first.items()}
    # 4 iterations of 3 epochs of 2 minibatches; 1 epoch where the divergence ends each
    assert steps["nothing"] == steps["slow environment on rank 0"] == steps["no episode ends on rank 1"] == 24
    assert steps["divergence on rank 0"] == 8
    for found in events:
        assert found["no episode ends on rank 1"]["returns"]["rollout/return_mean"] == 4.0
    errors = [{event: found["error"] for event, found in rank.items()} for rank in (first, second)]
    assert all(rank["nan on rank 1"].startswith("NonFiniteError") for rank in errors)
    cause = "EnvironmentFault: rank 1: env 0 raised in step after 21 steps: OSError: the cable was pulled"
    assert errors[1]["environment fails on rank 1"].startswith(cause)
    assert "an environment of rank 1 failed" in errors[0]["environment fails on rank 1"]
    assert steps["environment fails on rank 1"] == 6  # one iteration
    assert all(rank["Ctrl-C on rank 1"] == "Interrupted: stopped by SIGINT" for rank in errors)
    assert steps["Ctrl-C on rank 1"] == 12  # the second iteration is finished on both
    assert all("gamma: 0.9 on rank 0, 0.95 on rank 1" in rank["other settings on rank 1"] for rank in errors)


@pytest.mark.ranks
@pytest.mark.parametrize("way", WAYS)
def test_ranks_report_the_innermost_returns_and_learn_from_the_outermost_rewards(events, way):
    for found in (rank[f"wrapped rewards, {way}"] for rank in events):
        assert found["returns"] == {"rollout/return_mean": 4.0, "eval/return_mean": 4.0}
        assert set(found["own returns"]) == {4.0}
        rewards = found["rollout"]["rewards"]
        assert ((rewards == 0.0) | ((rewards - 0.1).abs() < 1e-6)).all() and rewards.max() > 0.0
        assert found["error"] == ""
    said = [[line for line in rank[f"wrapped rewards, {way}"]["said"] if "(Tenth)" in line] for rank in events]
    assert len(said[0]) == 1 and said[1] == []  # of all ranks the first speaks


@pytest.mark.ranks
@pytest.mark.parametrize("way", WAYS)
def test_no_two_ranks_draw_alike_from_global_generators(events, way):
    seen = torch.cat([rank[f"draws, {way}"]["rollout"]["observations"] for rank in events], 1)
    assert seen.shape == (16, 4, 6)
    for numbers in (seen[..., :3], seen[0, :, 3:]):  # drawn in steps, and while the copies were built
        assert len(numbers.unique()) == numbers.numel()


@pytest.mark.ranks
@pytest.mark.parametrize("way", [*WAYS, "vector"])
def test_first_episodes_of_all_ranks_end_at_different_times(events, way):
    expected = first_lengths(derive_seeds(3, 0, 8, "training"), 8, 8).tolist()
    ends = [rank[f"phases, {way}"]["rollout"]["truncations"] for rank in events]
    assert [int(column.int().argmax()) + 1 for columns in ends for column in columns.T] == expected
    assert set(expected[:4]) != set(expected[4:]) and len(set(expected)) >= 4


@pytest.mark.ranks
def test_torchrun_restarts_killed_ranks_and_the_result_is_that_of_an_undisturbed_run(undisturbed, tmp_path):
    settings = [*SMALL, "env.id=CartPole-v1", "total_env_steps=3840", "trainer.devices=2", "trainer.strategy=ddp"]
    child = [ROOT / "tests" / "whole" / "crash_test.py", "--child", "minibatch", "40", *settings, "resume=auto"]
    finished = torchrun(
        *("--max-restarts=1", *child, f"run_dir={tmp_path / 'killed'}"),
        **{"VICTIM": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "Signal 9 (SIGKILL)" in finished.stderr or "exitcode: -9" in finished.stderr
    assert differences(undisturbed, tmp_path / "killed") == []
