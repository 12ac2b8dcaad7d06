"""Hidden layers with LayerNorm."""

import torch
from torch import nn

from lightning_ppo.policy.layers import MLP


def test_what_a_layer_computes_is_normalised_before_the_activation():
    mlp = MLP(3, [5, 4], "tanh", layer_norm=True)
    first, norm, _, second, *_ = mlp
    assert [type(module) for module in mlp] == [nn.Linear, nn.LayerNorm, nn.Tanh] * 2
    x = 100.0 * torch.randn(7, 3)
    computed = first(x)
    rows = (computed - computed.mean(1, keepdim=True)) / computed.std(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(norm(computed), rows, rtol=1e-4, atol=1e-4)
    hidden = torch.tanh(rows)
    torch.testing.assert_close(mlp(x), torch.tanh(mlp[4](second(hidden))), rtol=1e-4, atol=1e-4)


def test_dropout_comes_last():
    assert [type(module) for module in MLP(3, [5], "relu", 0.1, True)] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout]
