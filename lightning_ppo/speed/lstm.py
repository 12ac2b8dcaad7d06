"""LSTMs over whole sequences on the CPU, several side by side: in NumPy, with their backward pass written out.

All is as in `gru`. The gates of `nn.LSTM` are i, f, g and o; here they are o, i, f and g, so that the logistic
functions are one block of memory and what the cell depends on is another.
"""

from collections.abc import Sequence

import numpy as np

from lightning_ppo.speed.gru import Array, by_cell, rows_of, starts_by_step


def forward(starts: Array, cells: Sequence[Sequence[Array]]) -> tuple[list[Array], list[Array]]:
    """Return the outputs (B, H) of K cells, and what `backward` needs besides; see `gru.forward`.

    Args:
        starts: (B,) bool, the state is zero before this step.
        cells: For each its inputs (B, I), state (S, 2 H), hidden and cell, the weights of inputs (4 H, I) and state
            (4 H, H), and the biases of both (4 H,).
    """
    (sequences, both), count, dtype = cells[0][1].shape, len(cells), cells[0][0].dtype
    size, resets = both // 2, starts_by_step(starts, sequences)
    length = len(resets)
    scale = np.repeat(np.array([0.5, 0.5, 0.5, 1.0], dtype), size)[:, None]
    gates = np.empty((length, 4 * size, count, sequences), dtype)
    before, cell_before = np.empty((2, length, size, count, sequences), dtype)
    squashed, outputs = np.empty_like(before), np.empty_like(before)
    recurrent, added = np.empty((count, 4 * size, size), dtype), np.empty((4 * size, count, sequences), dtype)
    for k, (x, state, w_x, w_h, b_x, b_h) in enumerate(cells):
        projected = x @ (np.roll(w_x, size, 0) * scale).T + np.roll(b_x + b_h, size) * scale[:, 0]
        gates[:, :, k] = projected.reshape(sequences, length, -1).transpose(1, 2, 0)
        recurrent[k] = np.roll(w_h, size, 0) * scale
        before[0, :, k], cell_before[0, :, k] = state[:, :size].T, state[:, size:].T
    cell = np.empty((size, count, sequences), dtype)
    for t, reset in enumerate(resets):
        step, hidden, old = gates[t], before[t], cell_before[t]
        if t:
            hidden[...], old[...] = outputs[t - 1], cell
        if reset is not None:
            hidden[..., reset] = old[..., reset] = 0.0
        np.matmul(recurrent, by_cell(hidden), out=by_cell(added))
        step += added
        np.tanh(step, out=step)
        logistic = step[: 3 * size]
        logistic *= 0.5
        logistic += 0.5
        now = outputs[t]
        np.multiply(step[2 * size : 3 * size], old, out=cell)
        cell += np.multiply(step[size : 2 * size], step[3 * size :], out=now)
        np.multiply(step[:size], np.tanh(cell, out=squashed[t]), out=now)
    return [rows_of(outputs, k) for k in range(count)], [gates, before, cell_before, squashed]


def kept_shapes(size: int) -> tuple[int, ...]:
    """Return F of the arrays (L, F, K, S) that `forward` keeps for `backward`."""
    return (4 * size, size, size, size)


def backward(
    starts: Array, cells: Sequence[Sequence[Array]], of_outputs: Sequence[Array], kept: Sequence[Array]
) -> list[Array]:
    """Return the gradients of the arguments of the cells, given those of their outputs."""
    gates, before, cell_before, squashed = kept
    length, size, count, sequences = before.shape
    resets = starts_by_step(starts, sequences)
    o, i, f, g = (gates[:, first : first + size] for first in range(0, 4 * size, size))
    of_o = squashed * o * (1.0 - o)
    through = o * (1.0 - squashed * squashed)
    slopes = np.stack((g * i * (1.0 - i), cell_before * f * (1.0 - f), i * (1.0 - g * g)), 1)
    weights = np.stack([np.roll(w_h, size, 0).T for _, _, _, w_h, *_ in cells])
    of_gates, of_hidden = np.empty_like(gates), np.empty_like(before)
    for k, of_output in enumerate(of_outputs):
        of_hidden[:, :, k] = of_output.reshape(sequences, length, size).transpose(1, 2, 0)
    of_state, of_cell = np.zeros_like(of_hidden[0]), np.zeros_like(of_hidden[0])
    added = np.empty_like(of_state)
    for t in range(length - 1, -1, -1):
        of_step, of_gate = of_hidden[t], of_gates[t]
        of_step += of_state
        np.multiply(of_step, of_o[t], out=of_gate[:size])
        of_cell += np.multiply(of_step, through[t], out=added)
        np.multiply(of_cell, slopes[t], out=of_gate[size:].reshape(3, size, count, sequences))
        np.matmul(weights, by_cell(of_gate), out=by_cell(of_state))
        of_cell *= f[t]
        if resets[t] is not None:
            of_state[..., resets[t]] = of_cell[..., resets[t]] = 0.0
    found = []
    for k, (x, _, w_x, *_) in enumerate(cells):
        of_sums = np.roll(rows_of(of_gates, k), -size, 1)
        of_bias = of_sums.sum(0)
        found += [of_sums @ w_x, np.concatenate((of_state[:, k], of_cell[:, k])).T.copy(), of_sums.T @ x]
        found += [of_sums.T @ rows_of(before, k), of_bias, of_bias.copy()]
    return found
