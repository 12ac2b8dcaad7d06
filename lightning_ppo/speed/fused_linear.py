"""Compiling for CPUs: linear layers in the form for which the compiler generates the fastest code."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

NARROW = 2
"""Outputs of a layer that is a weighted sum of its inputs, at most: a matrix product this narrow is slower."""
OPTIONS: dict[str, Any] = {"cpp.use_decompose_tanh": True, "pattern_matcher": False}
"""Of the compiler (docs/speed.md).

Tanh is 2 / (1 + exp(-2 x)) - 1: faster, with an error of 1e-7 that is not relative. The compiler's patterns would put
products and biases together again."""


def cpu_compiler(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph, its linear layers in full precision as products and sums; a backend of `torch.compile`.

    A linear layer is one call of a library, which first writes the bias into each row of the result, and so is each of
    the two products of its gradient, however narrow. Sums become part of the kernels beside them.
    """
    for node in graph.graph.nodes:
        # autocast shows in the result alone
        if node.target is nn.functional.linear and node.meta["example_value"].dtype in (torch.float32, torch.float64):
            node.target = _linear
    graph.recompile()
    return torch._inductor.compile(graph, [*inputs], options=OPTIONS)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    narrow = weight.shape[0] <= NARROW
    outputs = (input.unsqueeze(-2) * weight).sum(-1) if narrow else input @ weight.t()
    return outputs if bias is None else outputs + bias


def cxx_compiler() -> str | None:
    """Return the command of the C++ compiler, None where there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return None
