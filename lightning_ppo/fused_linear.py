"""Linear layers in the shape from which the compiler makes the fastest code for CPUs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = 2
"""Outputs of a layer that is a weighted sum of its inputs, at most: a matrix product this narrow is slower."""


class FusedLinear(TorchFunctionMode):
    """While active, linear layers are products and sums, so that what surrounds them is computed along.

    Compiled for a CPU, a linear layer is one call of a library, which first writes the bias into each row of the
    result, and so is each of the two products of its gradient, however narrow. Sums become part of the compiled
    kernels beside them.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Replace `torch.nn.functional.linear`, of inputs (..., F), in full precision."""
        if func is nn.functional.linear and not torch.is_autocast_enabled("cpu"):
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    narrow = weight.shape[0] <= NARROW
    outputs = (input.unsqueeze(-2) * weight).sum(-1) if narrow else input @ weight.t()
    return outputs if bias is None else outputs + bias
