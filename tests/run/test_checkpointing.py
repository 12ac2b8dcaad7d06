"""When last.ckpt is written."""

from types import SimpleNamespace

import torch

from lightning_ppo.run import checkpointing
from lightning_ppo.run.checkpointing import LastCheckpoint


def test_the_last_checkpoint_is_written_when_its_steps_are_reached_exactly_or_exceeded(monkeypatch):
    monkeypatch.setattr(checkpointing, "as_ppo", lambda module: module)
    module = SimpleNamespace(env_steps=100, device=torch.device("cpu"))  # where a run goes on
    written: list[int] = []
    trainer = SimpleNamespace(save_checkpoint=lambda path: written.append(module.env_steps))
    callback = LastCheckpoint("last.ckpt", every_env_steps=200)
    callback.on_train_start(trainer, module)
    for module.env_steps in (200, 300, 400, 499, 550, 750):
        callback.on_train_epoch_end(trainer, module)
    assert written == [300, 550, 750]
