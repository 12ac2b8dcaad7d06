"""A GPU that is there is used where it pays, and can be asked for or refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_ppo.run import training
from lightning_ppo.settings.loading import load
from lightning_ppo.speed.hardware import choose_accelerator

SMALL, LARGE, IMAGES = nn.Linear(64, 64), nn.Linear(1024, 1024), nn.Conv2d(4, 32, 8)
HOST, DEVICE = SimpleNamespace(), SimpleNamespace(device=torch.device("cuda:1"))


@pytest.mark.parametrize(
    ("network", "env", "expected"),
    [
        (SMALL, HOST, "cpu"),
        (SMALL, SimpleNamespace(device="cpu"), "cpu"),
        (SMALL, DEVICE, "cuda"),
        (LARGE, HOST, "cuda"),
        (IMAGES, HOST, "cuda"),
    ],
)
def test_a_gpu_is_for_large_networks_images_and_environments_on_it(monkeypatch, network, env, expected):
    assert choose_accelerator(network, env) == "cpu"  # there is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_accelerator(network, env) == expected
    assert choose_accelerator(network, env, elsewhere=True) == "cpu"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [([], "chosen"), (["trainer.accelerator=auto"], "chosen"), (["trainer.accelerator=gpu"], "gpu")],
)
def test_settings_win_over_what_is_chosen(monkeypatch, tmp_path, settings, expected):
    monkeypatch.setattr("lightning_ppo.speed.hardware.choose_accelerator", lambda *_: "chosen")
    monkeypatch.setattr("lightning_ppo.run.launch.check_trainer_settings", lambda _: None)
    monkeypatch.setattr(
        "pytorch_lightning.Trainer", lambda **given: SimpleNamespace(callbacks=[], **{"chosen": given["accelerator"]})
    )
    config = load([], settings)
    model = SimpleNamespace(policy=SMALL, env_steps=0, objective=SimpleNamespace(trust_region=False))
    assert training.build_trainer(config, tmp_path, None, model, None).chosen == expected
