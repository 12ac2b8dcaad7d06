"""What a training shows of its progress, in scripts as in the command, with and without a terminal."""

import logging

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.update import progress_bar
from lightning_ppo.update.progress_bar import EnvStepsProgressBar


def fit(*callbacks, **settings):
    data = RolloutDataModule({"num_envs": 2}, rollout={"num_steps": 16}, evaluation={"episodes": 0})
    model = PPO(
        data.observation_space, data.action_space, total_env_steps=96, update={"epochs": 1, "minibatch_size": 32}
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        **settings,
    )
    trainer.fit(model, data)
    return trainer


def test_a_trainer_in_a_script_shows_environment_steps_without_a_terminal_in_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.0)
    trainer = fit()
    assert isinstance(trainer.progress_bar_callback, EnvStepsProgressBar)
    out = capsys.readouterr().out
    assert "\r" not in out
    lines = [line for line in out.splitlines() if line.startswith("CartPole-v1")]
    assert len(lines) == 4 and all("/96.0 [" in line for line in lines) and "return=" in lines[-1]
    steps = [float(line.split("% ")[1].split("/")[0]) for line in lines]
    assert steps[0] <= 32.0 < steps[1] <= 64.0 < steps[2] == steps[3] <= 96.0


def test_a_line_is_told_every_half_minute_and_at_the_end(capsys):
    fit()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CartPole-v1")]
    assert len(lines) == 1 and "/96.0 [" in lines[0]


@pytest.mark.parametrize("bar", [TQDMProgressBar(), type("Mine", (TQDMProgressBar,), {})()])
def test_a_bar_of_the_users_own_stays(bar):
    assert fit(bar).progress_bar_callback is bar


def test_no_bar_stays_no_bar(capsys):
    assert fit(enable_progress_bar=False).progress_bar_callback is None
    assert "CartPole-v1" not in capsys.readouterr().out


def test_advertisements_are_dropped_and_other_messages_are_not(caplog):
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("💡 Tip: install something")
        logger.info("GPU available: False")
    assert [record.message for record in caplog.records] == ["GPU available: False"]
