"""GRUs over whole sequences on the CPU, several side by side: their steps in NumPy, their backward pass written out.

torch has no fused GRU for the CPU. What does not depend on the step before is computed for all steps at once, and the
state is set to zero on the way where an episode starts. Equations, results and the order of the gates (r, z, n) are
those of `nn.GRU`.

Arrays of a step are (features, K, S) for K cells and S sequences, so that each gate is one block of memory. A logistic
function is .5 tanh(x / 2) + .5: one call for r and z together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def starts_by_step(starts: Array, sequences: int) -> list[Array | None]:
    """Return for each of L steps which of S sequences (S,) start with it, None where none does, of `starts` (B,)."""
    begins = np.ascontiguousarray(starts.reshape(sequences, -1).T)
    return [row if row.any() else None for row in begins]


def by_cell(x: Array) -> Array:
    """Return (F, K, S) as (K, F, S), which a product of matrices takes, in the same memory."""
    return x.transpose(1, 0, 2)


def rows_of(x: Array, k: int) -> Array:
    """Return those of cell k in (L, F, K, S) as (B, F), the steps of a sequence one after the other."""
    return np.ascontiguousarray(x[:, :, k].transpose(2, 0, 1).reshape(-1, x.shape[1]))


def forward(starts: Array, cells: Sequence[Sequence[Array]]) -> tuple[list[Array], list[Array]]:
    """Return the outputs (B, H) of K cells of one size, and what `backward` needs besides, each (L, ..., K, S).

    Args:
        starts: (B,) bool, the state is zero before this step.
        cells: For each its inputs (B, I), S sequences of L = B / S steps, one after the other, its state (S, H) before
            the first, the weights of inputs (3 H, I) and state (3 H, H), and the biases of both (3 H,).
    """
    (sequences, size), count, dtype = cells[0][1].shape, len(cells), cells[0][0].dtype
    resets = starts_by_step(starts, sequences)
    length = len(resets)
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
        np.matmul(recurrent, by_cell(before[t]), out=by_cell(addition))
        r_and_z += addition[: 2 * size]
        np.tanh(r_and_z, out=r_and_z)
        r_and_z *= 0.5
        r_and_z += 0.5
        n += np.multiply(r_and_z[:size], addition[2 * size :], out=now)
        np.tanh(n, out=n)
        np.subtract(state, n, out=now)
        now *= r_and_z[size:]
        now += n  # (1 - z) n + z h
    return [rows_of(outputs, k) for k in range(count)], [gates, before, added]


def kept_shapes(size: int) -> tuple[int, ...]:
    """Return F of the arrays (L, F, K, S) that `forward` keeps for `backward`."""
    return (3 * size, size + 1, 3 * size)


def backward(
    starts: Array, cells: Sequence[Sequence[Array]], of_outputs: Sequence[Array], kept: Sequence[Array]
) -> list[Array]:
    """Return the gradients of the arguments of the cells, given those of their outputs and what `forward` kept."""
    gates, before, added = kept
    length, count, sequences = len(gates), *gates.shape[2:]
    size, resets = gates.shape[1] // 3, starts_by_step(starts, sequences)
    before, added = before[:, :size], added[:, 2 * size :]
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
        np.matmul(weights, by_cell(of_gate.reshape(-1, count, sequences)), out=by_cell(of_state))
        of_state += np.multiply(of_step, z[t], out=through)
        if resets[t] is not None:
            of_state[..., resets[t]] = 0.0
    of_gates = of_gates.reshape(length, -1, count, sequences)
    of_steps *= by_n
    found = []
    for k, (x, _, w_x, *_) in enumerate(cells):
        of_sums = rows_of(of_gates, k)
        of_projected = of_sums.copy()
        of_projected[:, 2 * size :] = rows_of(of_steps, k)
        found += [of_projected @ w_x, of_state[:, k].T.copy(), of_projected.T @ x]
        found += [of_sums.T @ rows_of(before, k), of_projected.sum(0), of_sums.sum(0)]
    return found
