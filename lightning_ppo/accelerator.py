"""Whether to train on a GPU that is there."""

from typing import Any

import torch
from torch import nn

from lightning_ppo.hardware import has_convolutions

MANY_WEIGHTS = 1_000_000
"""Trained parameters from which a GPU pays. Not measured: small MLPs are known to be slower there, and CNNs faster."""


def choose_accelerator(network: nn.Module, env: Any, elsewhere: bool = False) -> str:
    """Return the accelerator of Lightning's Trainer that suits, `cpu` or `cuda`.

    A GPU is taken where the environment is on one, or the network has convolutions or many weights; not where other
    processes collect, which do so on the CPU.

    Args:
        network: What is trained.
        env: The vector environment; one that is on a device names it in its attribute `device`.
        elsewhere: Whether other processes collect.
    """
    if elsewhere or not torch.cuda.is_available():
        return "cpu"
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    on_device = str(getattr(env, "device", "cpu")).startswith("cuda")
    return "cuda" if on_device or has_convolutions(network) or weights >= MANY_WEIGHTS else "cpu"
