"""The states of random generators: all global ones as plain data, and one that was saved on another device."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.support.errors import require


def checked_seed(seed: Any) -> int:
    """Return the seed of a run as an int.

    Raises:
        ConfigError: If it is none.
    """
    is_seed = isinstance(seed, Integral) and not isinstance(seed, bool) and 0 <= int(seed) < 2**32
    require(is_seed, f"seed: expected an integer from 0 to 2**32 - 1, got {seed!r}")
    return int(seed)


def seed_global_generators(seed: int) -> None:
    """Seed torch's, NumPy's and Python's global generators of this process, from which environments may draw."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def seed_process(seed: int) -> None:
    """Seed the global generators, but leave `torch.initial_seed()`: what has no seed of its own derives one from it."""
    initial = torch.get_rng_state()[:8]  # where torch keeps that number
    seed_global_generators(seed)
    torch.set_rng_state(torch.cat((initial, torch.get_rng_state()[8:])))


@contextmanager
def kept_generators() -> Iterator[None]:
    """Have the global generators be after the block as they were before it."""
    before = get_random_state()
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Have the block draw from global generators seeded for it alone; afterwards they are as they were."""
    with kept_generators():
        seed_process(seed)
        yield


def get_random_state() -> dict[str, Any]:
    """Return the state of torch's, CUDA's (where it is in use), NumPy's and Python's global generators."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": {"key": torch.from_numpy(numpy_state["key"].copy()), "pos": int(numpy_state["pos"])},
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global generators into the state that `get_random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"][: torch.cuda.device_count()]])
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"] = {"key": state["numpy"]["key"].cpu().numpy(), "pos": state["numpy"]["pos"]}
    np.random.set_state(numpy_state)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def restore_generator(generator: torch.Generator, state: Tensor, what: str) -> None:
    """Put a generator into a saved state; leave it, with a warning, if that is one of another kind of device.

    Args:
        generator: The generator.
        state: As returned by its `get_state`.
        what: What it does, for the warning.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state.cpu())
    else:
        from pytorch_lightning.utilities.rank_zero import rank_zero_warn  # processes of environments need none of it

        rank_zero_warn(f"the checkpoint was written on another kind of device: {what} with numbers seeded anew")


PURPOSES = (
    *("training", "evaluation", "noise", "shuffle", "test", "video", "noise of another group"),
    *("process", "evaluation process"),
)


def derive_seeds(seed: int, first: int, count: int, purpose: str) -> list[int]:
    """Return one seed for each of the global indices first..first+count-1.

    Consecutive integers would make environment 1 of run 1 the environment 0 of run 2. A seed that an index before has
    is replaced by the next of its sequence, so the seeds of all indices before are derived, too.

    Args:
        seed: Seed of the run.
        first: Global index of the first environment or rank.
        count: How many.
        purpose: one of PURPOSES.
    """
    key = PURPOSES.index(purpose)
    seeds: dict[int, None] = {}
    for index in range(first + count if count else 0):
        sequence, words = np.random.SeedSequence([seed, key, index]), 1
        while (found := int(sequence.generate_state(words)[-1])) in seeds:
            words += 1
        seeds[found] = None
    return list(seeds)[first:]
