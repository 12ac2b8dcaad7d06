"""A GRU over whole sequences on the CPU: its steps in NumPy, its backward pass written out.

torch has a fused LSTM for the CPU and no GRU. There, a step of a small GRU is a dozen operations on a few hundred
numbers, of which most of the time is the call, and the graph that autograd keeps of it. Here nothing is kept but the
gates, and what does not depend on the step before is computed for all steps at once. Equations, results and the order
of the gates (r, z, n) are those of `nn.GRU`.

Arrays of a step are (features, sequences), so that each gate of all sequences is one block of memory. A logistic
function is .5 tanh(x / 2) + .5: one call for r and z together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def gru(x: Tensor, state: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return outputs (L, S, H) and the state (S, H) after the last step; gradients of any order flow through them.

    Args:
        x: (L, S, I), S sequences of L steps, on the CPU.
        state: (S, H), before the first step.
        weights: Of inputs (3 H, I) and state (3 H, H), and the biases of both (3 H,), as `nn.GRU` has them.
    """
    return _GRU.apply(x.to(weights[0].dtype), state, *weights)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*tensors)
        with np.errstate(all="ignore"):
            outputs, state, ctx.kept = _forward(*(tensor.numpy() for tensor in tensors))
        return torch.from_numpy(outputs), torch.from_numpy(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a derivative of this one will be wanted, too
            return _differentiable_gradients(ctx.saved_tensors, gradients)
        arrays = (value.numpy() for value in (*ctx.saved_tensors, *gradients))
        with np.errstate(all="ignore"):
            found = _backward(*arrays, *ctx.kept)
        return tuple(map(torch.from_numpy, found))


def _differentiable_gradients(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of the arguments of `_forward` with a graph of their own, by torch's GRU."""
    x, state, *weights = tensors
    # with biases, one layer, no dropout, no dropout now either, one direction, steps first
    outputs, after = torch.gru(x, state.unsqueeze(0), weights, True, 1, 0.0, False, False, False)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad((outputs, after[0]), wanted, gradients, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in tensors)


def _forward(
    x: Array, state: Array, w_x: Array, w_h: Array, b_x: Array, b_h: Array
) -> tuple[Array, Array, tuple[Array, Array, Array]]:
    """Return outputs, last state, and for the backward pass: gates (L, 3 H, S), states and what they add to n."""
    (length, sequences, _), size = x.shape, w_h.shape[1]
    scale = np.repeat(np.array([0.5, 0.5, 1.0], x.dtype), size)
    # the bias of the state in n is multiplied by r, so it is not the inputs': a row of ones in the state brings it in
    inside = np.where(scale == 1.0, b_h, x.dtype.type(0.0))
    projected = x.reshape(length * sequences, -1) @ (w_x * scale[:, None]).T + (b_x + b_h - inside) * scale
    gates = np.ascontiguousarray(projected.reshape(length, sequences, -1).transpose(0, 2, 1))
    recurrent = np.concatenate((w_h * scale[:, None], inside[:, None]), 1)
    states = np.ones((length + 1, size + 1, sequences), x.dtype)
    states[0, :size] = state.T
    added = np.empty_like(gates)
    halves = np.full((2 * size, sequences), 0.5, x.dtype)
    for t in range(length):
        step, addition, now = gates[t], added[t], states[t + 1, :size]
        r_and_z, n = step[: 2 * size], step[2 * size :]
        np.matmul(recurrent, states[t], out=addition)
        r_and_z += addition[: 2 * size]
        np.tanh(r_and_z, out=r_and_z)
        r_and_z *= halves
        r_and_z += halves
        n += np.multiply(r_and_z[:size], addition[2 * size :], out=now)
        np.tanh(n, out=n)
        np.subtract(states[t, :size], n, out=now)
        now *= r_and_z[size:]
        now += n  # (1 - z) n + z h
    outputs = states[1:, :size].transpose(0, 2, 1).copy()
    return outputs, outputs[-1].copy(), (gates, states[:, :size], added[:, 2 * size :])


def _backward(
    x: Array,
    _: Array,
    w_x: Array,
    w_h: Array,
    b_x: Array,
    b_h: Array,
    of_outputs: Array,
    of_last: Array,
    gates: Array,
    states: Array,
    added: Array,
) -> tuple[Array, ...]:
    """Return the gradients of the arguments of `_forward`."""
    length, size, sequences = added.shape
    r, z, n = (gates[:, first : first + size] for first in (0, size, 2 * size))
    # derivatives of the next state by the arguments of r, z and n, the last as the state meets it: multiplied by r
    by_n = (1.0 - z) * (1.0 - n * n)
    slopes = np.stack((by_n * added * r * (1.0 - r), (states[:-1] - n) * z * (1.0 - z), by_n * r), 1)
    of_states = np.zeros_like(states)
    of_states[1:] = of_outputs.transpose(0, 2, 1)
    of_states[-1] += of_last.T
    of_gates, w_h_t = np.empty_like(slopes), np.ascontiguousarray(w_h.T)
    for t in range(length - 1, -1, -1):
        of_next, of_now = of_states[t + 1], of_states[t]
        of_step = np.multiply(of_next, slopes[t], out=of_gates[t])
        of_now += w_h_t @ of_step.reshape(-1, sequences)
        of_now += of_next * z[t]
    of_sums = _rows(of_gates.reshape(length, -1, sequences))
    of_projected = of_sums.copy()
    of_projected[:, 2 * size :] = _rows(of_states[1:] * by_n)
    return (
        (of_projected @ w_x).reshape(x.shape),
        of_states[0].T.copy(),
        of_projected.T @ x.reshape(length * sequences, -1),
        of_sums.T @ _rows(states[:-1]),
        of_projected.sum(0),
        of_sums.sum(0),
    )


def _rows(x: Array) -> Array:
    """Return (L, G, S) as (L x S, G)."""
    return x.transpose(0, 2, 1).reshape(-1, x.shape[1])
