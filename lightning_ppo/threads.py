"""How many threads torch uses."""

import os

import torch


def limit_threads() -> None:
    """Let torch use one thread unless OMP_NUM_THREADS is set: a second one slows small networks down."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
