"""Memory: recurrent cores, and how sequences in which episodes start are put through them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.speed import switch
from lightning_ppo.speed.host_cores import run_on_host
from lightning_ppo.support.recurrent_step import single_step


def full_precision(x: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, and any other as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def on_host(states: Tensor) -> bool:
    """Return whether Python may look at values without waiting for a device."""
    return states.device.type == "cpu"


BLANK = -1e4
"""Input that closes a gate: its logistic function is 0."""


class RecurrentWeights(nn.Module):
    """Weights of an LSTM or GRU, made and named as torch's layers do, which cannot be compiled.

    Args:
        layer: The layer they are taken from.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self._names = [name for name, _ in layer.named_parameters()]
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    @property
    def all(self) -> list[Tensor]:
        """Weights of inputs and state, and the biases of both."""
        return [getattr(self, name) for name in self._names]


class RecurrentCore(nn.Module):
    """An LSTM or GRU.

    Every core, a user's own too, has the two attributes below and this `forward`, which never sees where episodes
    start: what it is given lies within one episode each (see `run_cores`). A core that does see it takes whole
    sequences in `run_sequences`.

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
        self.cell = RecurrentWeights((nn.LSTM if kind == "lstm" else nn.GRU)(num_inputs, size))
        for name, parameter in self.cell.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self.num_features = size
        self.state_size = 2 * size if kind == "lstm" else size
        if kind == "lstm":
            shut = torch.tensor([BLANK, BLANK, 0.0, BLANK]).repeat_interleave(size).unsqueeze(1)
            self.register_buffer("blank", shut, persistent=False)

    @classmethod
    def of_settings(cls, num_inputs: int, policy: PolicyConfig) -> "RecurrentCore":
        """Return the core that settings ask for."""
        return cls(policy.core, num_inputs, policy.core_size)

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (L, S, F) and the states (S, H) after the last step.

        Args:
            x: (L, S, I), S sequences of L steps.
            states: (S, H), states before the first step; zeros where an episode starts.
        """
        outputs = []
        for seen in x.unbind(0):
            found, states = single_step(self.kind, seen, states, self.cell.all)
            outputs.append(found)
        return torch.stack(outputs), states

    @staticmethod
    def run_sequences(
        cores: Sequence[Any], inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor
    ) -> list[Tensor]:
        """Return the outputs (B, F) of each core for sequences in which episodes start; see `run_cores`."""
        if not on_host(starts):
            return _run_steps(cores, inputs, states, starts)
        if cores[0].kind == "lstm" and not torch.compiler.is_compiling():
            return _run_lstms(cores, inputs, states, starts)
        return run_on_host(cores[0].kind, inputs, states, starts, [core.cell.all for core in cores])


def run_cores(
    cores: Sequence[Any], inputs: Sequence[Tensor], states: Tensor, starts: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """Put sequences through recurrent cores, the state of each set to zero wherever an episode starts.

    Cores with a method `run_sequences`, as all that are built in, take sequences as they are. For others, on the CPU,
    sequences are cut where episodes start. On other devices, where looking for episodes' starts would be to wait, for
    others while they are compiled, and for all with `plain`, sequences go through the core step by step.

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
        found = [_step(core, x, s, starts) for core, x, s in zip(cores, inputs, own, strict=True)]
        after = [full_precision(state) for _, state in found]
        return [outputs for outputs, _ in found], after[0] if len(after) == 1 else torch.cat(after, -1)
    run: Any = _run_steps
    if switch.is_on():
        cut = on_host(starts) and not torch.compiler.is_compiling()
        run = getattr(cores[0], "run_sequences", _run_pieces if cut else _run_steps)
    return run(cores, inputs, own, starts), None


def run_core(core: Any, x: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Put sequences (B, I) through one core; see `run_cores`."""
    outputs, after = run_cores([core], [x], states, starts)
    return outputs[0], after


def _step(core: Any, x: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs (S, F) of a step and the states (S, H) after it."""
    outputs, after = core(x.unsqueeze(0), torch.where(starts.unsqueeze(-1), 0.0, states))
    return outputs[0], after


def _run_steps(
    cores: Sequence[Any], inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor
) -> list[Tensor]:
    """Return the outputs (B, F) of each core, which takes one step of all sequences after the other."""
    begins = starts.unflatten(0, (len(states[0]), -1)).unbind(1)
    outputs = []
    for core, x, state in zip(cores, inputs, states, strict=True):
        steps = []
        for seen, begun in zip(x.unflatten(0, (len(state), -1)).unbind(1), begins, strict=True):
            found, state = _step(core, seen, state, begun)
            steps.append(found)
        outputs.append(torch.stack(steps, 1).flatten(0, 1))
    return outputs


def _run_lstms(
    cores: Sequence[RecurrentCore], inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor
) -> list[Tensor]:
    """Return the outputs (B, F) of LSTMs whose sequences go through torch's in one call each, uncut.

    With 4 sequences in a minibatch torch's is faster than that in NumPy, which takes the compiler's place.

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
        of_inputs, *others = core.cell.all
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
    step = torch.arange(len(starts)) - first[piece]
    place = step * len(first) + piece
    longest = int(step.max()) + 1
    outputs = []
    for core, x, state in zip(cores, inputs, states, strict=True):
        padded = x.new_zeros(longest * len(first), x.shape[-1]).index_copy(0, place, x)
        before = torch.where(starts[first].unsqueeze(-1), 0.0, state[first // length])
        found, _ = core(padded.unflatten(0, (longest, -1)), before)
        outputs.append(found.flatten(0, 1).index_select(0, place))
    return outputs
