"""One thread, and the same random state, for every test."""

import logging
import multiprocessing
import os
import tempfile
from collections.abc import Iterator

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # the key that signs checkpoints is not the developer's
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what is compiled is kept for the next run, also where temporary folders are emptied
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser("~/.cache/lightning_ppo/tests"))

import numpy as np
import pytest
import torch
from hypothesis import settings

from lightning_ppo.collection import remote
from lightning_ppo.speed import switch
from lightning_ppo.support import notices

# the package comes first: so its modules are rewritten to say why an assertion fails
pytest_plugins = ["tests.kit", "tests.kit.selection", "tests.kit.limits", "tests.kit.signals"]

torch.set_num_threads(1)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

for name, examples in (("default", 15), ("ci", 60), ("thorough", 1000)):
    settings.register_profile(name, max_examples=examples, deadline=None, database=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="turn the shortcuts of speed/ off in this process")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--plain"):
        switch.is_on = lambda: False


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shortcut") and not switch.is_on():
        pytest.skip("is about a shortcut")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _forgetful() -> None:
    notices.forget()


@pytest.fixture(autouse=True)
def _preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that collect begin with everything imported, see `tests.kit.preloaded`."""
    from tests.kit.preloaded import multiprocessing_of_remote

    monkeypatch.setattr(remote, "multiprocessing", multiprocessing_of_remote)


@pytest.fixture
def new_interpreters(_preloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that collect are started as they are outside of tests."""
    monkeypatch.setattr(remote, "multiprocessing", multiprocessing)


@pytest.fixture(autouse=True)
def _unlaunched() -> Iterator[None]:
    """Take back what launching ranks in this process leaves in the environment."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK", "PL_GLOBAL_SEED")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def imitation(monkeypatch: pytest.MonkeyPatch) -> list:
    """Imitate CUDA graphs on the CPU; what is recorded is in the list."""
    from tests.kit.devices import imitate_graphs

    return imitate_graphs(monkeypatch)
