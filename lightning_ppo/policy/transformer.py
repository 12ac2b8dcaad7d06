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
WIDENING = 2
"""Hidden units of the position-wise MLP for each of its inputs."""


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
    """Attention of several heads to what is at most M steps back, with relative positions.

    Scores are those of Dai et al. 2019, "Transformer-XL", section 3.3. Keys and values are never computed: a query is
    multiplied by the weights of the keys instead, which are as many products for sequences and M times fewer for single
    steps.

    Args:
        size: D.
        heads: A, a divisor of D.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values, self.positions, self.outputs = (
            orthogonal_(nn.Linear(size, size, bias=False), 1.0) for _ in range(5)
        )
        self.content_bias, self.position_bias = (nn.Parameter(torch.zeros(size)) for _ in range(2))

    def forward(self, seen: Tensor, allowed: Tensor, distances: Tensor) -> Tensor:
        """Return what the last L steps (S, L, D) find.

        Args:
            seen: (S, M + L, D), M steps of memory and L of a sequence.
            allowed: (S, L, M + L) bool, whether a step may see another that is not more than M steps back.
            distances: (M + 1, D), encodings of the distances M to 0.
        """
        length = allowed.shape[1]
        queries = self.queries(seen[:, -length:])
        content = self._of_heads(queries + self.content_bias, self.keys)
        scores = content.flatten(1, 2) @ seen.transpose(1, 2)
        of_distances = self._of_heads(queries + self.position_bias, self.positions) @ distances.t()
        scores = full_precision(scores.unflatten(1, (length, self.heads))) + full_precision(_by_step(of_distances))
        scores = torch.where(allowed.unsqueeze(2), scores * (self.heads / seen.shape[-1]) ** 0.5, MASKED)
        found = scores.softmax(-1).to(seen.dtype).flatten(1, 2) @ seen
        weight = self.values.weight.unflatten(0, (self.heads, -1))
        found = torch.einsum("slad,akd->slak", found.unflatten(1, (length, self.heads)), weight)
        return self.outputs(found.flatten(2))

    def _of_heads(self, queries: Tensor, keys: nn.Linear) -> Tensor:
        """Return (S, L, A, D), which times an input of `keys` is the score of queries (S, L, D) times its output."""
        weight = keys.weight.unflatten(0, (self.heads, -1))
        return torch.einsum("slak,akd->slad", queries.unflatten(-1, (self.heads, -1)), weight)


class Layer(nn.Module):
    """Attention and a position-wise MLP, each behind a norm and a gate (Parisotto et al. 2020, section 3.2).

    Args:
        size: D.
        heads: Of the attention.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention, self.attention_gate, self.mlp_gate = Attention(size, heads), Gate(size), Gate(size)
        self.mlp = nn.Sequential(
            orthogonal_(nn.Linear(size, WIDENING * size), math.sqrt(2.0)),
            nn.ReLU(),
            orthogonal_(nn.Linear(WIDENING * size, size), 1.0),
            nn.ReLU(),
        )

    def forward(self, seen: Tensor, allowed: Tensor, distances: Tensor) -> Tensor:
        """Return the outputs (S, L, D) of the last L steps; see `Attention`."""
        stream = seen[:, -allowed.shape[1] :]
        stream = self.attention_gate(stream, self.attention(self.attention_norm(seen), allowed, distances).relu())
        return self.mlp_gate(stream, self.mlp(self.mlp_norm(stream)))


class TransformerCore(nn.Module):
    """A gated transformer (Parisotto et al. 2020, "GTrXL") with the memory of Transformer-XL (Dai et al. 2019).

    Each layer sees its inputs of this step and the M before it in the episode. The state is the last M inputs of every
    layer, and how many of them are of this episode.

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

    distances: Tensor

    def __init__(self, num_inputs: int, size: int = 64, layers: int = 1, heads: int = 4, memory: int = 32) -> None:
        super().__init__()
        self.embedding = orthogonal_(nn.Linear(num_inputs, size), 1.0)
        self.layers = nn.ModuleList([Layer(size, heads) for _ in range(layers)])
        self.memory, self.num_features = memory, size
        self.state_size = layers * memory * size + 1
        self.register_buffer("distances", _sinusoids(memory, size), persistent=False)

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
        known = (states[:, -1:] + x.shape[0]).clamp(max=self.memory)
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
        """Return the outputs (S, L, D), and for each layer its memory and inputs (S, M + L, D).

        Args:
            x: (S, L, I).
            states: (S, H), before the first step.
            starts: (S, L) bool, an episode starts with the step.
        """
        *past, known = states.split([self.memory * self.num_features] * len(self.layers) + [1], -1)
        stream, seen = full_precision(self.embedding(x)), []
        allowed = _same_episode(known, starts, self.memory)
        for layer, kept in zip(self.layers, past, strict=True):
            seen.append(torch.cat((kept.unflatten(-1, (self.memory, -1)).to(stream.dtype), stream), 1))
            stream = full_precision(layer(seen[-1], allowed, self.distances))
        return stream, seen


def _same_episode(known: Tensor, starts: Tensor, memory: int) -> Tensor:
    """Return whether steps may see others and the memory as far as episodes go, (S, L, M + L) bool.

    Args:
        known: (S, 1), how many of the M steps in memory are of the episode in which the sequence begins.
        starts: (S, L) bool, an episode starts with the step.
        memory: M.
    """
    episode = starts.cumsum(1)
    age = torch.arange(memory, 0, -1, device=known.device)
    of_past = torch.where(age <= known, 0, -1)
    return torch.cat((of_past, episode), 1).unsqueeze(1) == episode.unsqueeze(2)


def _by_step(of_distances: Tensor) -> Tensor:
    """Return scores (S, L, A, M + L) of steps, given those of their distances M to 0, (S, L, A, M + 1).

    Step i is at distance M + i - k of step k. Rows that are padded to M + L + 1 and then read as rows of M + L are
    shifted by one more each; what stands at distances below 0 and above M is masked.
    """
    length = of_distances.shape[1]
    rows = nn.functional.pad(of_distances.transpose(1, 2), (0, length), value=MASKED).flatten(2)
    width = of_distances.shape[-1] + length - 1
    return rows[..., : length * width].unflatten(-1, (length, width)).transpose(1, 2)


def _sinusoids(memory: int, size: int) -> Tensor:
    """Return encodings (M + 1, D) of the distances M to 0 (Vaswani et al. 2017, section 3.5)."""
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(memory, -1, -1).unsqueeze(1) * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1)[:, :size]
