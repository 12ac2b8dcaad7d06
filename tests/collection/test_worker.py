"""What the process that collects makes of its orders; here it is this one."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.collection.worker import _Worker, tensors_of
from lightning_ppo.support.errors import ConfigError, EnvironmentFault


@dataclass
class Found:
    """Stands for a rollout: what the policy was when it was collected."""

    tensors: dict[str, Tensor]
    version: int


class Collecting:
    """Collects what its policy is."""

    def __init__(self) -> None:
        self.policy: Any = nn.BatchNorm1d(2)
        self.policy.version = 0

    def change(self, changes: list) -> None:
        assert changes == []

    def collect(self) -> Found:
        return Found({k: v.detach().clone() for k, v in self.policy.state_dict().items()}, self.policy.version)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": 3}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        return "" if state["steps"] == 3 else "lost"


def test_it_collects_with_the_weights_and_statistics_that_the_order_brings():
    learnt = nn.BatchNorm1d(2)
    for number, tensor in enumerate(tensors_of(learnt)):
        tensor.data.fill_(number + 2)
    worker = _Worker(Collecting)
    found, error = worker.obey("collect", (7, [x.detach().numpy() for x in tensors_of(learnt)], []))
    assert error is None and found["version"] == 7
    assert {k: v.tolist() for k, v in found["tensors"].items()} == {
        k: v.tolist() for k, v in learnt.state_dict().items()
    }


def test_once_restored_it_draws_on_where_it_was_saved():
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    worker = _Worker(Collecting)
    saved, _ = worker.obey("save", None)
    expected = draw()
    assert worker.obey("load", saved) == ("", None)
    assert draw() == expected


def test_whatever_fails_is_an_answer():
    def refuse() -> Any:
        raise ConfigError("env.id: no such thing")

    found, error = _Worker(refuse).obey("save", None)
    assert found is None and isinstance(error, ConfigError)
    found, error = _Worker(Collecting).obey("collect", (7, []))
    assert found is None and isinstance(error, EnvironmentFault) and "the process that collects failed" in str(error)
