"""Memory: recurrent cores, and how sequences in which episodes start are put through them."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_ppo.gru import gru


def full_precision(x: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, and any other as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RecurrentCore(nn.Module):
    """An LSTM or GRU.

    Every core, a user's own too, has the two attributes below and this `forward`. It never sees where episodes start:
    what it is given lies within one episode each (see `run_core`).

    Attributes:
        num_features: F, size of its outputs.
        state_size: H, numbers in the state of one sequence.

    Args:
        kind: `lstm` or `gru`.
        num_inputs: I, size of its inputs.
        size: Of its hidden state.
    """

    def __init__(self, kind: str, num_inputs: int, size: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(num_inputs, size) if kind == "lstm" else nn.GRU(num_inputs, size)
        for name, parameter in self.cell.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self.num_features = size
        self.state_size = 2 * size if kind == "lstm" else size

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (L, S, F) and the states (S, H) after the last step.

        Args:
            x: (L, S, I), S sequences of L steps.
            states: (S, H), states before the first step; zeros where an episode starts.
        """
        weights = self.cell.all_weights[0]
        single = x.shape[0] == 1  # acting: a third of the time of the layer made for sequences
        if isinstance(self.cell, nn.GRU):
            if single:
                hidden = torch.gru_cell(x[0], states, *weights)
                return hidden.unsqueeze(0), hidden
            if x.device.type == "cpu":
                return gru(x, states, weights)
            output, hidden = self.cell(x, states.unsqueeze(0))
            return output, hidden[0]
        hidden, cell = states.chunk(2, -1)
        if single:
            hidden, cell = torch.lstm_cell(x[0], (hidden, cell), *weights)
            return hidden.unsqueeze(0), torch.cat((hidden, cell), -1)
        output, (hidden, cell) = self.cell(x, (hidden.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous()))
        return output, torch.cat((hidden[0], cell[0]), -1)


def run_core(core: Any, x: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Put sequences through a recurrent core, its state set to zero wherever an episode starts.

    Sequences of several steps are cut where episodes start, and all pieces go through the core side by side, in one
    call, each padded at its end to the length of the longest.

    Args:
        core: See `RecurrentCore`.
        x: (B, I), S sequences of L = B / S steps, one after the other.
        states: (S, H), states before the first step of each sequence.
        starts: (B,) bool, an episode starts with the step.

    Returns:
        Outputs (B, F), and the states (S, H) that follow single steps, or None where L is more than 1: training starts
        every sequence from a state that was stored while acting.
    """
    length = x.shape[0] // states.shape[0]
    if length == 1:
        outputs, states = core(x.unsqueeze(0), torch.where(starts.unsqueeze(-1), 0.0, states))
        return outputs[0], full_precision(states)
    begins = starts.clone()
    begins[::length] = True
    first = begins.nonzero().squeeze(1)
    piece = begins.cumsum(0) - 1
    step = torch.arange(len(x), device=x.device) - first[piece]
    place = step * len(first) + piece
    longest = int(step.max()) + 1
    padded = x.new_zeros(longest * len(first), x.shape[-1]).index_copy(0, place, x)
    before = torch.where(starts[first].unsqueeze(-1), 0.0, states[first // length])
    outputs, _ = core(padded.unflatten(0, (longest, -1)), before)
    return outputs.flatten(0, 1).index_select(0, place), None
