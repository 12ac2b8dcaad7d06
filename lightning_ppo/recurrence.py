"""Memory: recurrent cores, and how sequences in which episodes start are put through them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ppo.gru import run_grus


def full_precision(x: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, and any other as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


BLANK = -1e4
"""What shuts a gate: the logistic function of it is 0."""


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

    blank: Tensor

    def __init__(self, kind: str, num_inputs: int, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.cell = nn.LSTM(num_inputs, size) if kind == "lstm" else nn.GRU(num_inputs, size)
        for name, parameter in self.cell.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self.num_features = size
        self.state_size = 2 * size if kind == "lstm" else size
        if kind == "lstm":
            shut = torch.tensor([BLANK, BLANK, 0.0, BLANK]).repeat_interleave(size).unsqueeze(1)
            self.register_buffer("blank", shut, persistent=False)

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
            output, hidden = self.cell(x, states.unsqueeze(0))
            return output, hidden[0]
        hidden, cell = states.chunk(2, -1)
        if single:
            hidden, cell = torch.lstm_cell(x[0], (hidden, cell), *weights)
            return hidden.unsqueeze(0), torch.cat((hidden, cell), -1)
        output, (hidden, cell) = self.cell(x, (hidden.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous()))
        return output, torch.cat((hidden[0], cell[0]), -1)


def run_cores(
    cores: Sequence[Any], inputs: Sequence[Tensor], states: Tensor, starts: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """Put sequences through recurrent cores, the state of each set to zero wherever an episode starts.

    LSTMs and GRUs take sequences as they are on the CPU. For other cores and devices, sequences of several steps are
    cut where episodes start, and all pieces go through the core in one call, each padded at its end to the length of
    the longest.

    Args:
        cores: See `RecurrentCore`; all of them that of the configuration.
        inputs: For each core (B, I), S sequences of L = B / S steps, one after the other.
        states: (S, sum of H), states of all cores before the first step of each sequence.
        starts: (B,) bool, an episode starts with the step.

    Returns:
        Outputs (B, F) of each core, and the states (S, sum of H) that follow single steps, or None where L is more
        than 1: training starts every sequence from a state that was stored while acting.
    """
    own = states.split([core.state_size for core in cores], -1)
    if starts.shape[0] // states.shape[0] == 1:
        reset = starts.unsqueeze(-1)
        found = [
            core(x.unsqueeze(0), torch.where(reset, 0.0, s)) for core, x, s in zip(cores, inputs, own, strict=True)
        ]
        after = [full_precision(state) for _, state in found]
        return [outputs[0] for outputs, _ in found], after[0] if len(after) == 1 else torch.cat(after, -1)
    if states.device.type == "cpu" and all(isinstance(core, RecurrentCore) for core in cores):
        if cores[0].kind == "lstm":
            return _run_lstms(cores, inputs, own, starts), None
        return list(run_grus(inputs, own, starts, [core.cell.all_weights[0] for core in cores])), None
    return _run_pieces(cores, inputs, own, starts), None


def run_core(core: Any, x: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Put sequences (B, I) through one core; see `run_cores`."""
    outputs, after = run_cores([core], [x], states, starts)
    return outputs[0], after


def _run_lstms(
    cores: Sequence[RecurrentCore], inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor
) -> list[Tensor]:
    """Return the outputs (B, F) of LSTMs whose sequences go through torch's in one call each, uncut.

    In front of an episode's start there is a blank step, at which an input of its own shuts the gates i, f and o: after
    it hidden state and cell are 0, and no gradient gets through.
    """
    sequences = len(states[0])
    begins = starts.unflatten(0, (sequences, -1))
    blanks = begins.clone()
    blanks[:, 0] = False
    so_far = blanks.cumsum(1)
    length = begins.shape[1] + int(so_far[:, -1].max())
    step = so_far + torch.arange(begins.shape[1])
    place = (step * sequences + torch.arange(sequences).unsqueeze(1)).flatten()
    is_blank = inputs[0].new_zeros(length * sequences, 1)
    is_blank[place[blanks.flatten()] - sequences] = 1.0
    outputs = []
    for core, x, state in zip(cores, inputs, states, strict=True):
        of_inputs, *others = core.cell.all_weights[0]
        padded = torch.cat((x.new_zeros(len(is_blank), x.shape[1]).index_copy(0, place, x), is_blank), 1)
        hidden, cell = torch.where(begins[:, :1], 0.0, state).unsqueeze(0).chunk(2, -1)
        weights = [torch.cat((of_inputs, core.blank), 1), *others]
        # with biases, one layer, no dropout, for training, one direction, steps first
        found, *_ = torch.lstm(
            padded.unflatten(0, (length, -1)),
            (hidden.contiguous(), cell.contiguous()),
            weights,
            True,
            1,
            0.0,
            core.training,
            False,
            False,
        )
        outputs.append(found.flatten(0, 1).index_select(0, place))
    return outputs


def _run_pieces(
    cores: Sequence[Any], inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor
) -> list[Tensor]:
    """Return the outputs (B, F) of each core, which never meets the start of an episode."""
    length = len(starts) // len(states[0])
    begins = starts.clone()
    begins[::length] = True
    first = begins.nonzero().squeeze(1)
    piece = begins.cumsum(0) - 1
    step = torch.arange(len(starts), device=starts.device) - first[piece]
    place = step * len(first) + piece
    longest = int(step.max()) + 1
    outputs = []
    for core, x, state in zip(cores, inputs, states, strict=True):
        padded = x.new_zeros(longest * len(first), x.shape[-1]).index_copy(0, place, x)
        before = torch.where(starts[first].unsqueeze(-1), 0.0, state[first // length])
        found, _ = core(padded.unflatten(0, (longest, -1)), before)
        outputs.append(found.flatten(0, 1).index_select(0, place))
    return outputs
