"""GRUs over whole sequences on the CPU, several side by side: their steps in NumPy, their backward pass written out.

torch has a fused LSTM for the CPU and no GRU. There, a step of a small GRU is a dozen operations on a few hundred
numbers, of which most of the time is the call, and the graph that autograd keeps of it. Here nothing is kept but the
gates, actor and critic take each step together, what does not depend on the step before is computed for all steps at
once, and the state is set to zero on the way where an episode starts. Equations, results and the order of the gates
(r, z, n) are those of `nn.GRU`.

Arrays of a step are (features, K, S) for K cells and S sequences, so that each gate is one block of memory. A logistic
function is .5 tanh(x / 2) + .5: one call for r and z together.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

ARGUMENTS = 6
"""Tensors of each cell: inputs, state, and the four weights."""


def run_grus(
    inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor, weights: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, ...]:
    """Return the outputs (B, H) of K cells of one size; gradients of any order flow through them.

    Args:
        inputs: For each cell (B, I), S sequences of L = B / S steps, one after the other, on the CPU.
        states: For each cell (S, H), before the first step.
        starts: (B,) bool, the state is zero before this step.
        weights: For each cell those of inputs (3 H, I) and state (3 H, H), and the biases of both (3 H,).
    """
    dtype = weights[0][0].dtype
    tensors = [x for cell in zip(inputs, states, weights, strict=True) for x in (*cell[:2], *cell[2])]
    return _GRUs.apply(starts, *(x.to(dtype) for x in tensors))


class _GRUs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, starts: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(starts, *tensors)
        with np.errstate(all="ignore"):
            outputs, ctx.kept = _forward(starts.numpy(), [x.numpy() for x in tensors])
        return tuple(map(torch.from_numpy, outputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        starts, *tensors = ctx.saved_tensors
        # a loss may depend on some of the cells alone, as an actor's does
        used = [number for number, gradient in enumerate(gradients) if gradient is not None]
        places = [number * ARGUMENTS + place for number in used for place in range(ARGUMENTS)]
        chosen, given = [tensors[place] for place in places], [x for x in gradients if x is not None]
        of_arguments: Iterable[Tensor | None] = ()
        if torch.is_grad_enabled() and used:  # a derivative of this one will be wanted, too
            of_arguments = _differentiable_gradients(starts, chosen, given)
        elif used:
            with np.errstate(all="ignore"):
                arrays = _backward([x.numpy() for x in chosen], [x.numpy() for x in given], used, *ctx.kept)
            of_arguments = map(torch.from_numpy, arrays)
        found: list[Tensor | None] = [None] * len(tensors)
        for place, gradient in zip(places, of_arguments, strict=True):
            found[place] = gradient
        return None, *found


def _differentiable_gradients(
    starts: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of the arguments of `_forward` with a graph of their own, by torch, step after step."""
    outputs = []
    for x, state, *weights in _cells(tensors):
        by_step = [tensor.unflatten(0, (len(state), -1)).unbind(1) for tensor in (x, starts.unsqueeze(-1))]
        steps = []
        for seen, begun in zip(*by_step, strict=True):
            state = torch.gru_cell(seen, torch.where(begun, 0.0, state), *weights)
            steps.append(state)
        outputs.append(torch.stack(steps, 1).flatten(0, 1))
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]


def _cells(arguments: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the arguments of each cell."""
    return [arguments[first : first + ARGUMENTS] for first in range(0, len(arguments), ARGUMENTS)]


def _forward(starts: Array, arguments: Sequence[Array]) -> tuple[list[Array], tuple[Any, ...]]:
    """Return the outputs (B, H) of each cell, and what the backward pass needs: the last arguments of `_backward`."""
    cells = _cells(arguments)
    (sequences, size), count, dtype = cells[0][1].shape, len(cells), cells[0][0].dtype
    length = len(starts) // sequences
    begins = np.ascontiguousarray(starts.reshape(sequences, length).T)
    resets = [row if row.any() else None for row in begins]
    scale = np.repeat(np.array([0.5, 0.5, 1.0], dtype), size)
    gates = np.empty((length, 3 * size, count, sequences), dtype)
    before, added = np.ones((length, size + 1, count, sequences), dtype), np.empty_like(gates)
    recurrent = np.empty((count, 3 * size, size + 1), dtype)
    for k, (x, state, w_x, w_h, b_x, b_h) in enumerate(cells):
        # the bias of the state in n is multiplied by r, so it is not the inputs': a row of ones in the state adds it
        inside = np.where(scale == 1.0, b_h, dtype.type(0.0))
        projected = x @ (w_x * scale[:, None]).T + (b_x + b_h - inside) * scale
        gates[:, :, k] = projected.reshape(sequences, length, -1).transpose(1, 2, 0)
        recurrent[k, :, :size], recurrent[k, :, size] = w_h * scale[:, None], inside
        before[0, :size, k] = state.T
    outputs = np.empty((length, size, count, sequences), dtype)
    for t, reset in enumerate(resets):
        step, addition, state, now = gates[t], added[t], before[t, :size], outputs[t]
        if t:
            state[...] = outputs[t - 1]
        if reset is not None:
            state[..., reset] = 0.0
        r_and_z, n = step[: 2 * size], step[2 * size :]
        np.matmul(recurrent, before[t].transpose(1, 0, 2), out=addition.transpose(1, 0, 2))
        r_and_z += addition[: 2 * size]
        np.tanh(r_and_z, out=r_and_z)
        r_and_z *= 0.5
        r_and_z += 0.5
        n += np.multiply(r_and_z[:size], addition[2 * size :], out=now)
        np.tanh(n, out=n)
        np.subtract(state, n, out=now)
        now *= r_and_z[size:]
        now += n  # (1 - z) n + z h
    return [_rows(outputs, k) for k in range(count)], (gates, before[:, :size], added[:, 2 * size :], resets)


def _backward(
    arguments: Sequence[Array],
    of_outputs: Sequence[Array],
    used: Sequence[int],
    gates: Array,
    before: Array,
    added: Array,
    resets: Sequence[Array | None],
) -> list[Array]:
    """Return the gradients of the arguments of the cells that are `used`, given those of their outputs."""
    cells = _cells(arguments)
    if len(used) < gates.shape[2]:
        gates, before, added = gates[:, :, used], before[:, :, used], added[:, :, used]
    length, size, count, sequences = before.shape
    r, z, n = (gates[:, first : first + size] for first in (0, size, 2 * size))
    # derivatives of the output by the arguments of r, z and n, the last as the state meets it: multiplied by r
    by_n = (1.0 - z) * (1.0 - n * n)
    slopes = np.stack((by_n * added * r * (1.0 - r), (before - n) * z * (1.0 - z), by_n * r), 1)
    weights = np.stack([w_h.T for _, _, _, w_h, *_ in cells])
    of_gates, of_steps = np.empty_like(slopes), np.empty((length, size, count, sequences), gates.dtype)
    for k, of_output in enumerate(of_outputs):
        of_steps[:, :, k] = of_output.reshape(sequences, length, size).transpose(1, 2, 0)
    of_state, through = np.zeros_like(of_steps[0]), np.empty_like(of_steps[0])
    for t in range(length - 1, -1, -1):
        of_step, of_gate = of_steps[t], of_gates[t]
        of_step += of_state
        np.multiply(of_step, slopes[t], out=of_gate)
        by_cell = of_gate.reshape(-1, count, sequences).transpose(1, 0, 2)
        np.matmul(weights, by_cell, out=of_state.transpose(1, 0, 2))
        of_state += np.multiply(of_step, z[t], out=through)
        if resets[t] is not None:
            of_state[..., resets[t]] = 0.0
    of_gates = of_gates.reshape(length, -1, count, sequences)
    of_steps *= by_n
    found = []
    for k, (x, _, w_x, *_) in enumerate(cells):
        of_sums = _rows(of_gates, k)
        of_projected = of_sums.copy()
        of_projected[:, 2 * size :] = _rows(of_steps, k)
        found += [of_projected @ w_x, of_state[:, k].T.copy(), of_projected.T @ x]
        found += [of_sums.T @ _rows(before, k), of_projected.sum(0), of_sums.sum(0)]
    return found


def _rows(x: Array, k: int) -> Array:
    """Return those of cell k in (L, F, K, S) as (B, F), the steps of a sequence one after the other."""
    return x[:, :, k].transpose(2, 0, 1).reshape(-1, x.shape[1])
