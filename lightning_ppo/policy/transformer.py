"""Memory by attention: a transformer whose gates and memory make it trainable by reinforcement learning (GTrXL)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ppo.policy.layers import orthogonal_
from lightning_ppo.policy.recurrence import full_precision
from lightning_ppo.settings.networks import PolicyConfig

MASKED = -1e9
"""Score of what must not be seen."""
CLOSED = -2.0
"""Initial bias of the update gates, which lets little through (Parisotto et al. 2020, section 3.2, b_g = 2)."""


class Gate(nn.Module):
    """The GRU-type gate that takes the place of the residual connection (Parisotto et al. 2020, equation 8).

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.of_update = orthogonal_(nn.Linear(size, 3 * size), 1.0)
        self.of_stream = orthogonal_(nn.Linear(size, 2 * size, bias=False), 1.0)
        self.of_reset = orthogonal_(nn.Linear(size, size, bias=False), 1.0)
        with torch.no_grad():
            self.of_update.bias[size : 2 * size] = CLOSED

    def forward(self, stream: Tensor, update: Tensor) -> Tensor:
        """Return the stream (..., D) with an update (..., D) taken into it."""
        of_gates, of_candidate = self.of_update(update).split((2 * self.size, self.size), -1)
        reset, share = torch.sigmoid(of_gates + self.of_stream(stream)).chunk(2, -1)
        candidate = torch.tanh(of_candidate + self.of_reset(reset * stream))
        return stream + share * (candidate - stream)


class Attention(nn.Module):
    """Attention of several heads to steps that are at most M back.

    How far back a step lies shows in a learnt bias for each head and distance (Raffel et al. 2020, "T5", section 2.1,
    without buckets). Biases begin as slopes (Press et al. 2022, "ALiBi"), from 1 for the first head, which hardly sees
    more than the last steps, to 1 / M for the last, which sees all.

    Args:
        size: D.
        heads: A, a divisor of D.
        memory: M.
    """

    def __init__(self, size: int, heads: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = orthogonal_(nn.Linear(size, size), 1.0)
        self.keys, self.values = (orthogonal_(nn.Linear(size, size, bias=False), 1.0) for _ in range(2))
        slopes = memory ** -torch.linspace(0.0, 1.0, heads)
        self.distances = nn.Parameter(slopes.unsqueeze(1) * torch.arange(-memory, 1))

    def forward(self, seen: Tensor, hidden: Tensor) -> Tensor:
        """Return what the last L steps (S, L, D) find.

        Args:
            seen: (S, M + L, D), M steps of memory and L of a sequence.
            hidden: (S, 1, L, M + L), 0 where a step may see another and `MASKED` where not.
        """
        length, count, size = hidden.shape[2], *seen.shape[1:]
        queries = self._apart(self.queries(seen[:, -length:]) * (self.heads / size) ** 0.5)
        bias = _by_step(self.distances, length) + hidden
        if length * (size + self.heads * count) < count * (size + length):
            # products in another order, fewer for single steps: nothing is computed of each step in memory
            content = torch.einsum("salk,akd->sald", queries, self._of_heads(self.keys))
            scores = (content.flatten(1, 2) @ seen.transpose(1, 2)).unflatten(1, (self.heads, length))
            found = (_softmax(scores, bias).flatten(1, 2) @ seen).unflatten(1, (self.heads, length))
            found = torch.einsum("sald,akd->salk", found, self._of_heads(self.values))
        else:
            scores = queries @ self._apart(self.keys(seen)).transpose(2, 3)
            found = _softmax(scores, bias) @ self._apart(self.values(seen))
        return found.transpose(1, 2).flatten(2)

    def _apart(self, x: Tensor) -> Tensor:
        """Return (S, L, D) by head, (S, A, L, D / A)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _of_heads(self, layer: nn.Linear) -> Tensor:
        """Return the weights of a layer by head, (A, D / A, D)."""
        return layer.weight.unflatten(0, (self.heads, -1))


class Layer(nn.Module):
    """Attention and a position-wise MLP, each behind a norm and a gate (Parisotto et al. 2020, section 3.2).

    Gates begin with linear layers, which are the last ones of attention and MLP, too.

    Args:
        size: D.
        heads: Of the attention.
        memory: M.
    """

    def __init__(self, size: int, heads: int, memory: int) -> None:
        super().__init__()
        # what follows it is linear, so weights of its own would add nothing
        self.attention_norm = nn.LayerNorm(size, elementwise_affine=False)
        self.attention, self.attention_gate = Attention(size, heads, memory), Gate(size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size),
            orthogonal_(nn.Linear(size, size), math.sqrt(2.0)),
            nn.SiLU(),
        )
        self.mlp_gate = Gate(size)

    def forward(self, stream: Tensor, past: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (S, L, D), and what the attention has seen (S, M + L, D).

        Args:
            stream: (S, L, D).
            past: (S, M, D), what the attention was given in the M steps before.
            hidden: See `Attention`.
        """
        seen = torch.cat((past.to(stream.dtype), self.attention_norm(stream)), 1)
        stream = self.attention_gate(stream, self.attention(seen, hidden))
        return full_precision(self.mlp_gate(stream, self.mlp(stream))), seen


class TransformerCore(nn.Module):
    """A gated transformer (Parisotto et al. 2020, "GTrXL") with the memory of Transformer-XL (Dai et al. 2019).

    Each layer sees its inputs of this step and the M before it in the episode. The state is the last M inputs of the
    attention of every layer, and how many of them are of this episode.

    Attributes:
        num_features: D, size of its outputs.
        state_size: H, numbers in the state of one sequence.

    Args:
        num_inputs: I, size of its inputs.
        size: D, of every layer.
        layers: How many there are.
        heads: Of the attention, a divisor of D.
        memory: M.
    """

    def __init__(self, num_inputs: int, size: int = 64, layers: int = 1, heads: int = 4, memory: int = 32) -> None:
        super().__init__()
        self.embedding = orthogonal_(nn.Linear(num_inputs, size), 1.0)
        self.layers = nn.ModuleList([Layer(size, heads, memory) for _ in range(layers)])
        self.memory, self.num_features = memory, size
        self.state_size = layers * memory * size + 1

    @classmethod
    def of_settings(cls, num_inputs: int, policy: PolicyConfig) -> "TransformerCore":
        """Return the core that settings ask for."""
        return cls(num_inputs, policy.core_size, policy.core_layers, policy.core_heads, policy.core_memory)

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (L, S, D) and the states (S, H) after the last step.

        Args:
            x: (L, S, I), S sequences of L steps within an episode each.
            states: (S, H), states before the first step; zeros where an episode starts.
        """
        starts = torch.zeros(x.shape[1], x.shape[0], dtype=torch.bool, device=x.device)
        outputs, seen = self._run(x.transpose(0, 1), states, starts)
        known = (self._known(states) + x.shape[0]).clamp(max=self.memory)
        kept = [inputs[:, -self.memory :].flatten(1) for inputs in seen]
        return outputs.transpose(0, 1), torch.cat((*kept, known), -1)

    @staticmethod
    def run_sequences(
        cores: Sequence[Any], inputs: Sequence[Tensor], states: Sequence[Tensor], starts: Tensor
    ) -> list[Tensor]:
        """Return the outputs (B, D) of each core for sequences in which episodes start; see `run_cores`."""
        begins = starts.unflatten(0, (len(states[0]), -1))
        sequences = [x.unflatten(0, begins.shape) for x in inputs]
        return [
            core._run(x, state, begins)[0].flatten(0, 1)
            for core, x, state in zip(cores, sequences, states, strict=True)
        ]

    def _run(self, x: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs (S, L, D), and what each layer's attention has seen (S, M + L, D).

        Args:
            x: (S, L, I).
            states: (S, H), before the first step.
            starts: (S, L) bool, an episode starts with the step.
        """
        past = states[:, :-1].chunk(len(self.layers), -1)
        stream, seen = full_precision(self.embedding(x)), []
        hidden = _hidden(self._known(states), starts, self.memory)
        for layer, kept in zip(self.layers, past, strict=True):
            stream, of_layer = layer(stream, kept.unflatten(-1, (self.memory, -1)), hidden)
            seen.append(of_layer)
        return stream, seen

    def _known(self, states: Tensor) -> Tensor:
        """Return how many steps in memory are of the episode (S, 1); any numbers (S, H) are a state."""
        return states[:, -1:].floor().clamp(min=0)


def _softmax(scores: Tensor, bias: Tensor) -> Tensor:
    return (full_precision(scores) + bias).softmax(-1).to(scores.dtype)


def _hidden(known: Tensor, starts: Tensor, memory: int) -> Tensor:
    """Return `MASKED` where steps or the memory are of another episode than a step, else 0, (S, 1, L, M + L).

    Args:
        known: (S, 1), how many of the M steps in memory are of the episode in which the sequence begins.
        starts: (S, L) bool, an episode starts with the step.
        memory: M.
    """
    episode = starts.cumsum(1)
    age = torch.arange(memory, 0, -1, device=known.device)
    episodes = torch.cat((torch.where(age <= known, 0, -1), episode), 1)
    return torch.where(episodes.unsqueeze(1) == episode.unsqueeze(2), 0.0, MASKED).unsqueeze(1)


def _by_step(of_distances: Tensor, length: int) -> Tensor:
    """Return biases (A, L, M + L) of L steps, given those of the distances M to 0, (A, M + 1).

    Step i is at distance M + i - k of step k. Rows that are padded to M + L + 1 and then read as rows of M + L are
    shifted by one more each; what stands at distances below 0 and above M is masked.
    """
    width = of_distances.shape[-1] + length - 1
    rows = nn.functional.pad(of_distances, (0, length), value=MASKED).unsqueeze(1).expand(-1, length, -1)
    return rows.flatten(1)[:, : length * width].unflatten(1, (length, width))
