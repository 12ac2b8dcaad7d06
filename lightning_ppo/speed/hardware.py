"""Choose threads, precision and device for this machine.

These are settings, not shortcuts, so `plain` does not change them.
"""

import logging
import os
from typing import Any

import torch
from torch import nn

from lightning_ppo.speed.waiting import threads_spin
from lightning_ppo.support.cores import usable_cores
from lightning_ppo.support.notices import warn_once

_log = logging.getLogger(__name__)


def limit_threads() -> None:
    """Let torch use one thread unless OMP_NUM_THREADS is set: a second one slows small networks down."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def use_cores(network: nn.Module, processes: int = 1) -> None:
    """Let torch use this process's share of the cores if a network has convolutions and OMP_NUM_THREADS is not set.

    Args:
        network: What is trained.
        processes: How many of them share this machine's cores.
    """
    if "OMP_NUM_THREADS" not in os.environ and has_convolutions(network):
        threads = max(1, usable_cores() // processes)
        torch.set_num_threads(threads)
        if threads > 1 and threads_spin():
            warn_once(
                _log,
                threads_spin,
                f"torch was imported before lightning_ppo, so its {threads} threads keep their cores busy while they "
                "wait, which is slow beside other programs; import lightning_ppo first, or set OMP_WAIT_POLICY=PASSIVE",
            )


def fastest_precision(network: nn.Module, accelerator: str) -> str:
    """Return the precision of Lightning's Trainer in which a network trains fastest, `32-true` or `bf16-mixed`.

    Args:
        network: What is trained.
        accelerator: Of the Trainer.
    """
    return "bf16-mixed" if accelerator == "cpu" and computes_bfloat16() and has_convolutions(network) else "32-true"


def computes_bfloat16() -> bool:
    """Return whether the CPU computes in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported()


def has_convolutions(network: nn.Module) -> bool:
    """Return whether a network has convolutions over images, which have work for more than one core."""
    return any(isinstance(module, nn.Conv2d) for module in network.modules())


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
