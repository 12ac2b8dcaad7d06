"""Training of one and of several ranks on the same data."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.kit.paths import ROOT


def launch(out: Path, ranks: int, env: str, control: str = "", precision: str = "32-true") -> list[dict]:
    arguments = [str(ROOT / "tests" / "kit" / "ddp_worker.py"), str(out), env, control, precision]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    finished = subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(ranks)]


def distance(one: dict, other: dict) -> float:
    names = [name for name in one if name.startswith("policy.")]
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in names)
