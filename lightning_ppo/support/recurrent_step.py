"""One step of an LSTM or GRU, as torch computes it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def single_step(kind: str, x: Tensor, state: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the outputs (S, H) and the states after a step, of inputs (S, I) and the states before it."""
    if kind == "gru":
        hidden = torch.gru_cell(x, state, *weights)
        return hidden, hidden
    hidden, cell = torch.lstm_cell(x, state.chunk(2, -1), *weights)
    return hidden, torch.cat((hidden, cell), -1)
