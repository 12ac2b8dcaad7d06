"""The states of random generators: all global ones as plain data, and one that was saved on another device."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_global_generators(seed: int) -> None:
    """Seed torch's, NumPy's and Python's global generators of this process, from which environments may draw."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


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
        state: What its `get_state` returned.
        what: What it does, for the warning.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state.cpu())
    else:
        from pytorch_lightning.utilities.rank_zero import rank_zero_warn  # processes of environments need none of it

        rank_zero_warn(f"the checkpoint was written on another kind of device: {what} with numbers seeded anew")
