"""Threads sleep while they wait for each other, and the cores of a container are counted."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_ppo.speed import hardware, waiting
from lightning_ppo.support import cores, notices

START = "from lightning_ppo.cli import main; main(['configs']); import torch"


@pytest.mark.parametrize(("told", "policy", "spins"), [({}, "PASSIVE", "0"), ({"GOMP_SPINCOUNT": "7"}, None, "7")])
def test_torch_is_started_with_threads_that_sleep_unless_the_person_says_how(told, policy, spins):
    if not any("libgomp" in name for name in os.listdir(os.path.join(os.path.dirname(torch.__file__), "lib"))):
        pytest.skip("torch uses another OpenMP")
    kept = {name: value for name, value in os.environ.items() if name not in waiting.NAMES}
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose", **told}
    shown = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=True)
    settings = dict(line.split(" = ") for line in shown.stderr.splitlines() if " = " in line)
    settings = {name.split()[-1]: value for name, value in settings.items()}
    assert settings["GOMP_SPINCOUNT"] == f"'{spins}'"
    assert policy is None or settings["OMP_WAIT_POLICY"] == f"'{policy}'"


@pytest.fixture
def undecided(monkeypatch):
    for name in (*waiting.NAMES, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what the code under test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(waiting, "_spin", False)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    notices.forget()


def said(caplog):
    with caplog.at_level(logging.WARNING):
        waiting.sleep_while_waiting()
        hardware.use_cores(nn.Conv2d(1, 1, 1))
        hardware.use_cores(nn.Linear(1, 1))
        hardware.use_cores(nn.Conv2d(1, 1, 1))
    return [message for message in caplog.messages if "torch was imported before" in message]


def test_threads_that_cannot_be_told_any_more_are_one_line(undecided, caplog):
    assert len(said(caplog)) == 1 and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("name", waiting.NAMES)
def test_what_a_person_has_set_stays_without_a_word(name, undecided, monkeypatch, caplog):
    monkeypatch.setenv(name, "1")
    assert said(caplog) == []
    assert name == "OMP_WAIT_POLICY" or "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"jobs/7/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(files, expected, monkeypatch, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_own_group", lambda: "jobs/7")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable_cores() == expected
