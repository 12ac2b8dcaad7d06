"""The mode in which a policy acts and is evaluated."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(policy: nn.Module) -> Iterator[None]:
    """Put a policy in eval mode and every submodule back into its own mode afterwards.

    Rollouts and evaluations must neither drop units out nor move the statistics of batch normalisation.
    """
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
