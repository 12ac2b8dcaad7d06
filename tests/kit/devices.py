"""What would happen on a GPU, on a machine without one."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_ppo.collection import collector
from lightning_ppo.speed import compiled_gradients, graphs


class Looks(TorchDispatchMode):
    """Counts operations whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal")
        return func(*args, **(kwargs or {}))


def imitate_graphs(monkeypatch: pytest.MonkeyPatch) -> list:
    """Make replays call the function with the recorded memory; outputs are always in the same place.

    Return the functions that are recorded.
    """
    recordings = []

    def record(function, inputs, before=None):
        outputs = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, function(*inputs))
        recordings.append(function)

        def replay():
            compiled = counters["stats"]["unique_graphs"]
            for place, value in zip(tree_leaves(outputs), tree_leaves(function(*inputs)), strict=True):
                if isinstance(place, torch.Tensor):
                    place.copy_(value)
            assert counters["stats"]["unique_graphs"] == compiled, "a replay notices no change"

        # a recording computes nothing
        for place in tree_leaves(outputs):
            if isinstance(place, torch.Tensor):
                place.fill_(99)
        return SimpleNamespace(replay=replay), outputs

    monkeypatch.setattr(graphs, "record", record)
    for room in (collector, compiled_gradients):
        monkeypatch.setattr(room, "can_record", lambda device: True)
    return recordings
