"""Ranks of one machine reduce small tensors through shared memory: the same numbers as the process group's."""

import json
import os
import platform
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from lightning_ppo.speed import shared_sums
from lightning_ppo.support import distributed
from tests.kit import sums_worker
from tests.kit.paths import ROOT
from tests.kit.preloaded import Command

SHARES = sys.platform == "linux" and platform.machine() == "x86_64"


def shared_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "lightning_ppo" in name}


@pytest.mark.ranks
def test_three_ranks_get_what_the_process_group_gives_and_notice_a_death(tmp_path):
    before = shared_files() if SHARES else set()
    ranks = [Command(sums_worker.main, str(tmp_path / "out"), rank, 3) for rank in range(3)]
    codes, _, errors = zip(*[rank.wait(240) for rank in ranks], strict=True)
    assert codes == (0, 0, -signal.SIGKILL if SHARES else 0), errors
    for rank in range(2):
        found = json.loads((tmp_path / f"out.{rank}").read_text())
        assert found["shared"] == SHARES
        assert found["different"] == []
        assert found["changed"] == 0
        assert found["large"] == 2.0  # too large for a slot
        if SHARES:
            late, dead = found["errors"]
            assert late.startswith("rank 2 has not come to a collective operation for 1 s")
            assert dead.startswith("rank 2 has ended")
    if SHARES:
        assert shared_files() <= before  # nothing stays behind, whoever dies


@pytest.mark.skipif(not SHARES, reason="ranks share memory on Linux on x86-64")
def test_a_rank_that_is_killed_before_the_others_come_leaves_nothing_behind():
    """Killed right after it has created the shared memory, and while the other ranks open it."""
    before = set(os.listdir("/dev/shm"))
    code = "import lightning_ppo.speed.shared_sums as s, os, sys; f, t = s._create(2); print(os.getpid(), f, t.hex())"
    command = [sys.executable, "-c", f"{code}; sys.stdout.flush(); input()"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as creator:
        pid, number, token = creator.stdout.readline().split()
        path = f"/proc/{pid}/fd/{number}"
        assert shared_sums._open(path, bytes(16)) is None  # some other file
        file = shared_sums._open(path, bytes.fromhex(token))
        assert file is not None and os.fstat(file).st_size == shared_sums.file_size(2)
        creator.kill()
    assert set(os.listdir("/dev/shm")) <= before
    os.close(file)
    assert shared_sums._open(path, bytes.fromhex(token)) is None


@pytest.mark.parametrize(
    ("machine", "nodes", "device"), [("aarch64", 1, "cpu"), ("x86_64", 2, "cpu"), ("x86_64", 1, "cuda")]
)
def test_elsewhere_all_goes_through_the_process_group(machine, nodes, device, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(distributed.atexit, "register", lambda _: None)
    distributed.join_ranks(partial(shared_sums.connect, torch.device(device), nodes))
    assert distributed._shared is None
