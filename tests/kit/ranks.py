"""Training of one and of several ranks on the same data."""

from pathlib import Path

import torch

from tests.kit import ddp_worker
from tests.kit.preloaded import run_ranks

_done: dict[tuple[int, str, str, str], list[dict]] = {}


def launch(out: Path, ranks: int, env: str, control: str = "", precision: str = "32-true") -> list[dict]:
    """Return what each rank saved; the same training is done once per process of tests."""
    case = ranks, env, control, precision
    if case not in _done:
        run_ranks(ranks, ddp_worker.main, str(out), env, control, precision)
        _done[case] = [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(ranks)]
    return _done[case]


def distance(one: dict, other: dict) -> float:
    names = [name for name in one if name.startswith("policy.")]
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in names)
