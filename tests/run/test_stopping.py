"""All ranks stop where one of them was told to."""

import signal

import pytest
import torch
from torch import nn

from lightning_ppo.run import stopping
from lightning_ppo.run.stopping import GracefulStop, Interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_ranks_stop_before_the_test_if_one_was_told_to(monkeypatch, number):
    monkeypatch.setattr(stopping, "max_over_ranks", lambda own: torch.full_like(own, int(number)))
    stop, module = GracefulStop(None), nn.Module()
    module.device = torch.device("cpu")
    with pytest.raises(Interrupted, match=number.name):
        stop.on_test_start(None, module)
