"""Initialised layers and the MLP of hidden layers."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def orthogonal_(layer: nn.Linear | nn.Conv2d, gain: float) -> Any:
    """Initialise a layer with orthogonal weights and zero biases (Saxe et al. 2014), in place."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Fully connected layers: (B, num_inputs) -> (B, num_features).

    After each layer come LayerNorm, activation and dropout, the first and the last where they are asked for.

    Weights are orthogonal with gain sqrt(2), as in OpenAI baselines, whatever the activation.

    Args:
        num_inputs: Size of the flattened input.
        hidden_sizes: Units of each layer; none makes the encoder the identity.
        activation: `tanh`, `relu`, `elu`, `silu` or `gelu`.
        dropout: Share of units left out in training mode.
        layer_norm: Whether there is a LayerNorm before each activation.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_sizes: Sequence[int],
        activation: str,
        dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip([num_inputs, *hidden_sizes], hidden_sizes, strict=False):
            layers.append(orthogonal_(nn.Linear(inputs, outputs), math.sqrt(2.0)))
            if layer_norm:
                layers.append(nn.LayerNorm(outputs))
            layers.append(_ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.num_features = hidden_sizes[-1] if hidden_sizes else num_inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, num_features) of inputs (B, num_inputs)."""
        return super().forward(x)
