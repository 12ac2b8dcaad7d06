"""Linear layers in the shape that the compiler fuses."""

import pytest
import torch
from torch import nn

from lightning_ppo.fused_linear import NARROW, FusedLinear


@pytest.mark.parametrize("outputs", [1, NARROW, NARROW + 1, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (7,), (5, 7)])
def test_outputs_and_gradients_are_those_of_linear_layers(outputs, bias, rows):
    layer = nn.Linear(17, outputs, bias=bias, dtype=torch.float64)
    inputs = torch.randn(*rows, 17, dtype=torch.float64, requires_grad=True)

    def results():
        found = layer(inputs)
        return [found, *torch.autograd.grad(found.square().sum(), (inputs, *layer.parameters()))]

    expected = results()
    with FusedLinear():
        torch.testing.assert_close(results(), expected, rtol=1e-12, atol=1e-12)


def test_compiled_code_calls_no_product_for_a_narrow_layer_and_adds_the_bias_itself():
    from torch._inductor.utils import run_and_get_code

    from lightning_ppo.optimization import CPU_OPTIONS

    wide, narrow = nn.Linear(17, 64), nn.Linear(64, 1)

    def loss(inputs):
        with FusedLinear():
            return narrow(wide(inputs).tanh()).square().mean()

    inputs = torch.randn(128, 17)
    found, (code, *_) = run_and_get_code(torch.compile(loss, fullgraph=True, options=CPU_OPTIONS), inputs)
    torch.testing.assert_close(found, loss(inputs))
    assert "addmm" not in code
    assert code.count("extern_kernels.mm(") == 1


def test_half_precision_stays_a_linear_layer():
    layer, inputs = nn.Linear(17, 1), torch.randn(5, 17)
    with torch.autocast("cpu", torch.bfloat16), FusedLinear():
        assert layer(inputs).dtype == torch.bfloat16
