"""One thread, and the same random state, for every test."""

import logging
import os
import tempfile

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # the key that signs checkpoints is not the developer's
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from lightning_ppo.support import notices

torch.set_num_threads(1)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--examples", type=int, default=60, help="damaged configs to try in tests/test_damage.py")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _forgetful() -> None:
    notices.forget()
