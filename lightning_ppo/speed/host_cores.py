"""LSTMs and GRUs over whole sequences on the CPU as functions of tensors, known to autograd and to the compiler.

A step of a small core is a dozen operations on a few hundred numbers, of which most of the time is the call, and the
graph that autograd keeps of it. `gru` and `lstm` keep nothing but the gates, and there actor and critic take each step
together. The compiler calls them as they are: traced, each of 32 steps would be kernels of its own, which take minutes
to compile.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.speed import gru, lstm
from lightning_ppo.support.recurrent_step import single_step

KINDS: dict[str, Any] = {"gru": gru, "lstm": lstm}
ARGUMENTS = 6
"""Tensors of each cell: inputs, state, and the four weights."""


def run_on_host(
    kind: str, inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor, weights: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Return the outputs (B, H) of K cells of one size; gradients of any order flow through them.

    Args:
        kind: `lstm` or `gru`.
        inputs: For each cell (B, I), S sequences of L = B / S steps, one after the other, on the CPU.
        states: For each cell those before the first step: (S, H), or of LSTMs hidden and cell, (S, 2 H).
        starts: (B,) bool, the state is zero before this step.
        weights: For each cell those of inputs and state, and the biases of both, as torch has them.
    """
    compiling = torch.compiler.is_compiling()
    if compiling:
        inputs = [x.view_as(x) for x in inputs]  # which must not be the same
    dtype = weights[0][0].dtype
    tensors = [x for cell in zip(inputs, states, weights, strict=True) for x in (*cell[:2], *cell[2])]
    found = (_CompiledCores if compiling else _Cores).apply(kind, starts, *(x.to(dtype) for x in tensors))
    return [*found[: len(inputs)]]


def _keep(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    """Keep what the backward pass needs: the arguments, and what follows the outputs of the cells."""
    kind, starts, *tensors = inputs
    ctx.kind, ctx.count = kind, len(tensors) // ARGUMENTS
    ctx.mark_non_differentiable(*output[ctx.count :])
    ctx.save_for_backward(starts, *tensors, *output[ctx.count :])


class _Cores(torch.autograd.Function):
    """Gives the outputs of the cells, and what the backward pass needs."""

    @staticmethod
    def forward(ctx: Any, kind: str, starts: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = tuple(_forward(kind, starts, tensors))
        _keep(ctx, (kind, starts, *tensors), output)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        starts, *saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count * ARGUMENTS], saved[ctx.count * ARGUMENTS :]
        # a loss may depend on some of the cells alone, as an actor's does
        used = [number for number in range(ctx.count) if gradients[number] is not None]
        places = [number * ARGUMENTS + place for number in used for place in range(ARGUMENTS)]
        chosen, given = [tensors[place] for place in places], [x for x in gradients[: ctx.count] if x is not None]
        of_arguments: Iterable[Tensor | None] = ()
        if torch.is_grad_enabled() and used:  # a derivative of this one will be wanted, too
            of_arguments = _differentiable_gradients(ctx.kind, starts, chosen, given)
        elif used:
            if len(used) < ctx.count:
                kept = [x[:, :, used] for x in kept]
            of_arguments = _backward(ctx.kind, starts, chosen, given, kept)
        found: list[Tensor | None] = [None] * len(tensors)
        for place, gradient in zip(places, of_arguments, strict=True):
            found[place] = gradient
        return None, None, *found


class _CompiledCores(torch.autograd.Function):
    """The same as the compiler takes it; uncompiled, a function in this form has the price of a step more."""

    @staticmethod
    def forward(kind: str, starts: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_compiled_forward(kind, starts, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        starts, *saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count * ARGUMENTS], saved[ctx.count * ARGUMENTS :]
        return None, None, *_compiled_backward(ctx.kind, starts, tensors, gradients[: ctx.count], kept)


def _cells(arguments: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the arguments of each cell."""
    return [arguments[first : first + ARGUMENTS] for first in range(0, len(arguments), ARGUMENTS)]


def _forward(kind: str, starts: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of the cells, and what the backward pass needs."""
    with np.errstate(all="ignore"):
        outputs, kept = KINDS[kind].forward(starts.numpy(), _cells([x.numpy() for x in tensors]))
    return [torch.from_numpy(x) for x in (*outputs, *kept)]


def _backward(
    kind: str, starts: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of the tensors, given those of the outputs."""
    cells = _cells([x.numpy() for x in tensors])
    with np.errstate(all="ignore"):
        found = KINDS[kind].backward(starts.numpy(), cells, [x.numpy() for x in gradients], [x.numpy() for x in kept])
    return [torch.from_numpy(x) for x in found]


@torch.library.custom_op("lightning_ppo::cores", mutates_args=())
def _compiled_forward(kind: str, starts: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    return _forward(kind, starts, tensors)


@_compiled_forward.register_fake
def _(kind: str, starts: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    cells = _cells(tensors)
    x, state, _, w_h, *_ = cells[0]
    size = w_h.shape[1]
    shapes = KINDS[kind].kept_shapes(size)
    length, rest = len(starts) // len(state), (len(cells), len(state))
    outputs = [x.new_empty(len(starts), size) for _ in cells]
    return outputs + [x.new_empty(length, rows, *rest) for rows in shapes]


@torch.library.custom_op("lightning_ppo::cores_backward", mutates_args=())
def _compiled_backward(
    kind: str, starts: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    return _backward(kind, starts, tensors, gradients, kept)


@_compiled_backward.register_fake
def _(
    kind: str, starts: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


def _differentiable_gradients(
    kind: str, starts: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of the tensors with a graph of their own, by torch, step after step."""
    outputs = []
    for x, state, *weights in _cells(tensors):
        by_step = [tensor.unflatten(0, (len(state), -1)).unbind(1) for tensor in (x, starts.unsqueeze(-1))]
        steps = []
        for seen, begun in zip(*by_step, strict=True):
            output, state = single_step(kind, seen, torch.where(begun, 0.0, state), weights)
            steps.append(output)
        outputs.append(torch.stack(steps, 1).flatten(0, 1))
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]
