"""The mode in which a policy acts and is evaluated."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn


@contextmanager
def eval_mode(policy: nn.Module) -> Iterator[None]:
    """Put a policy in eval mode and every submodule back into its own mode afterwards.

    Rollouts and evaluations must neither drop units out nor move the statistics of batch normalisation. Weights that
    ranks share out are gathered for the whole of it.
    """
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        with getattr(policy, "whole_weights", nullcontext)():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
