"""What a command returns: 0, 1 where it failed, 2 for a mistake on the command line, or the code of a signal."""

import signal

import pytest

from lightning_ppo import cli
from lightning_ppo.cli import train
from lightning_ppo.run import training
from lightning_ppo.run.stopping import Interrupted
from lightning_ppo.support.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (Interrupted(signal.SIGINT), 130, "stopped; go on with"),
        (Interrupted(signal.SIGTERM), 143, "stopped; go on with"),
        (Interrupted(signal.SIGUSR1), 143, "stopped; go on with"),
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


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (ConfigError("x"), 2), (OSError("x"), 1)])
def test_another_command_ends_with(raised, code, monkeypatch, capsys):
    def fail(options):
        raise raised

    monkeypatch.setattr(cli.configs, "run", fail)
    assert cli.main(["configs"]) == code
