"""Processes of `tests.kit.preloaded` are to tests what new interpreters would be."""

import os
import sys
import time
from pathlib import Path

import pytest
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tests.kit.preloaded import Command, run_ranks


def tell(number: int) -> int:
    print(f"{os.environ['MINE']} in {Path.cwd().name}")
    print("wrong", file=sys.stderr)
    return number


def test_a_command_has_arguments_a_folder_an_environment_streams_and_an_exit_code(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Command(tell, 3, MINE="hers").wait(60) == (3, "hers in here\n", "wrong\n")
    assert "MINE" not in os.environ


def wait_or_fail() -> None:
    if rank_zero_only.rank == int(os.environ["RANK"]) == 1:
        raise OSError("the cable was pulled")
    time.sleep(1000.0)


def test_a_rank_that_fails_ends_the_others_and_says_why():
    started = time.monotonic()
    with pytest.raises(AssertionError, match="OSError: the cable was pulled"):
        run_ranks(2, wait_or_fail)
    assert time.monotonic() - started < 60.0
