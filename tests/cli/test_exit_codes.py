"""What a command returns: 0, 1 where it failed, 2 for a mistake on the command line, or the code of a signal."""

import signal
from pathlib import Path
from unittest import mock

import pytest

from lightning_ppo import cli
from lightning_ppo.cli import train
from lightning_ppo.run import training
from lightning_ppo.run.stopping import Interrupted
from lightning_ppo.support.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (Interrupted(signal.SIGINT, Path("runs/a b")), 130, "stopped; continue with: "),
        (Interrupted(signal.SIGTERM, Path("runs/a b")), 143, "stopped; continue with: "),
        (Interrupted(signal.SIGUSR1, Path("runs/a b")), 143, "stopped; continue with: "),
        (KeyboardInterrupt(), 130, ""),
        (ConfigError("seed: wrong"), 2, "error: seed: wrong\n"),
        (CheckpointError("a.ckpt: damaged"), 1, "error: a.ckpt: damaged\n"),
        (OSError("no\nspace"), 1, "error: OSError: no space (debug=true shows where)\n"),
        (None, 0, ""),
    ],
    ids=repr,
)
def test_a_training_ends_with(raised, code, told, monkeypatch, capsys):
    def fail(config):
        if raised is not None:
            raise raised

    monkeypatch.setattr(training, "train", fail)
    assert train.main([]) == code
    found = capsys.readouterr().err
    assert found.startswith(told) and found.count("\n") <= 1 and "Traceback" not in found
    assert not isinstance(raised, Interrupted) or found.endswith(" run_dir='runs/a b' resume=last\n")


def test_a_training_that_saved_nothing_does_not_offer_to_continue(monkeypatch, capsys):
    monkeypatch.setattr(training, "train", mock.Mock(side_effect=Interrupted(signal.SIGINT)))
    assert train.main([]) == 130
    assert capsys.readouterr().err == "stopped; nothing was saved\n"


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (ConfigError("x"), 2), (OSError("x"), 1)])
def test_another_command_ends_with(raised, code, monkeypatch, capsys):
    def fail(options):
        raise raised

    monkeypatch.setattr(cli.configs, "run", fail)
    assert cli.main(["configs"]) == code
