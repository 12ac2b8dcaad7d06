"""The GRU written out for the CPU is torch's: outputs, last states, gradients of any order, parameters."""

import pytest
import torch
from torch import Tensor, nn

from lightning_ppo.gru import gru
from lightning_ppo.recurrence import RecurrentCore


def make(length: int, sequences: int, inputs: int, size: int, dtype: torch.dtype) -> tuple[nn.GRU, list[Tensor]]:
    """Return torch's layer with biases that matter, and random inputs and states."""
    torch.manual_seed(0)
    layer = nn.GRU(inputs, size).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    tensors = [torch.randn(length, sequences, inputs, dtype=dtype), torch.randn(sequences, size, dtype=dtype)]
    return layer, [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(
    ("length", "sequences", "inputs", "size"), [(1, 3, 4, 5), (5, 1, 1, 1), (16, 4, 64, 64), (37, 33, 10, 42)]
)
@pytest.mark.parametrize(
    ("dtype", "of_outputs", "of_gradients"), [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-14, 1e-12)], ids=str
)
def test_it_is_the_gru_of_torch(length, sequences, inputs, size, dtype, of_outputs, of_gradients):
    layer, (x, state) = make(length, sequences, inputs, size, dtype)
    found = gru(x, state, layer.all_weights[0])
    outputs, last = layer(x, state.unsqueeze(0))
    expected = (outputs, last[0])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=of_outputs)
    # gradients through the outputs and through the last state alone
    for number in range(2):
        weights = torch.randn_like(expected[number]) / expected[number].numel()
        both = (
            torch.autograd.grad((pair[number] * weights).sum(), [x, state, *layer.parameters()], retain_graph=True)
            for pair in (found, expected)
        )
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=of_gradients, atol=of_gradients)


def test_derivatives_of_derivatives():
    layer, tensors = make(3, 2, 2, 3, torch.float64)
    arguments = (*tensors, *(weight.detach().requires_grad_() for weight in layer.all_weights[0]))

    def function(x: Tensor, state: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return gru(x, state, weights)

    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_only_what_needs_gradients_gets_them():
    layer, (x, state) = make(4, 2, 3, 5, torch.float32)
    layer.weight_ih_l0.requires_grad_(False)
    outputs, _ = gru(x, state.detach(), layer.all_weights[0])
    outputs.sum().backward()
    assert layer.weight_ih_l0.grad is None and state.grad is None
    assert all(tensor.grad.abs().max() > 0.0 for tensor in (x, layer.weight_hh_l0, layer.bias_ih_l0))
    first = torch.autograd.grad(gru(x, state.detach(), layer.all_weights[0])[0].sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), layer.weight_hh_l0)[0].abs().max() > 0.0


def test_the_core_takes_and_gives_weights_of_torch():
    layer, (x, state) = make(6, 2, 3, 5, torch.float32)
    core = RecurrentCore("gru", 3, 5)
    core.cell.load_state_dict(layer.state_dict())
    assert {name.removeprefix("cell.") for name in core.state_dict()} == set(layer.state_dict())
    outputs, last = core(x, state)
    assert outputs.grad_fn.name() == gru(x, state, layer.all_weights[0])[0].grad_fn.name()  # on the CPU it is this one
    torch.testing.assert_close(last, layer(x, state.unsqueeze(0))[1][0], rtol=0.0, atol=1e-6)
    # half precision is not for what a state keeps
    with torch.autocast("cpu", torch.bfloat16):
        assert core(x.bfloat16(), state)[0].dtype == torch.float32
