"""Linear layers in the shape that the compiler fuses."""

import itertools

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from lightning_ppo.speed.fused_linear import NARROW, cpu_compiler


def compiled(function, *inputs):
    """Return what a function returns when it is compiled for a CPU, and the code."""
    return run_and_get_code(torch.compile(function, fullgraph=True, backend=cpu_compiler), *inputs)


@pytest.mark.compiled
def test_outputs_and_gradients_are_those_of_linear_layers():
    """Narrow and wide layers with and without bias, of one and of many rows, in one graph."""
    cases = list(itertools.product((1, NARROW, NARROW + 1), (True, False), ((), (7,), (5, 7))))
    layers = nn.ModuleList(nn.Linear(17, outputs, bias=bias, dtype=torch.float64) for outputs, bias, _ in cases)
    inputs = [torch.randn(*rows, 17, dtype=torch.float64) for _, _, rows in cases]

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, inputs):
            outputs = [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]
            return sum(x.square().sum() for x in outputs), outputs

    module = All()

    def results(inputs, parameters):
        def loss(inputs, parameters):
            return torch.func.functional_call(module, parameters, (inputs,))

        return torch.func.grad_and_value(loss, argnums=(0, 1), has_aux=True)(inputs, parameters)

    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    found, _ = compiled(results, inputs, parameters)
    torch.testing.assert_close(found, results(inputs, parameters), rtol=1e-12, atol=1e-12)


def test_compiled_code_calls_no_product_for_a_narrow_layer_and_adds_the_bias_itself():
    wide, narrow, inputs = nn.Linear(17, 64), nn.Linear(64, 1), torch.randn(128, 17)

    @torch.no_grad()
    def loss(inputs):
        return narrow(wide(inputs).tanh()).square().mean()

    found, (code, *_) = compiled(loss, inputs)
    torch.testing.assert_close(found, loss(inputs))
    assert "addmm" not in code
    assert code.count("extern_kernels.mm(") == 1


def test_layers_that_name_their_arguments():
    weight, bias, inputs = torch.randn(1, 17), torch.randn(1), torch.randn(5, 17)

    def outputs(inputs):
        return nn.functional.linear(inputs, weight=weight, bias=bias)

    found, (code, *_) = compiled(outputs, inputs)
    torch.testing.assert_close(found, outputs(inputs))
    assert "mm(" not in code


def test_half_precision_stays_a_linear_layer():
    layer, inputs = nn.Linear(17, 1), torch.randn(5, 17)

    @torch.no_grad()
    def outputs(inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(inputs)

    found, _ = compiled(outputs, inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, outputs(inputs), rtol=1e-2, atol=1e-2)


def test_what_torch_writes_in_python_is_traced_beside_linear_layers():
    layer, inputs = nn.Linear(17, 6), torch.randn(5, 17)

    @torch.no_grad()
    def outputs(inputs):
        return layer(inputs).unflatten(-1, (2, 3))

    torch.testing.assert_close(compiled(outputs, inputs)[0], outputs(inputs))
