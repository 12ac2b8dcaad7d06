"""LSTMs and GRUs written out for the CPU are torch's: outputs, gradients of any order, several at once, resets."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lightning_ppo.speed.host_cores import run_on_host

LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM}


def make(kind: str, length: int, sequences: int, sizes: Sequence[int], dtype: torch.dtype = torch.float64):
    """Return torch's layers of size sizes[0] with biases that matter, for inputs of the other sizes; inputs and states.

    Inputs are (B, I), states (S, H), of LSTMs (S, 2 H), and starts (B,), about one in four.
    """
    torch.manual_seed(0)
    size, *inputs = sizes
    layers = [LAYERS[kind](count, size).to(dtype) for count in inputs]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    xs = [torch.randn(sequences * length, count, dtype=dtype).requires_grad_() for count in inputs]
    states = [torch.randn(sequences, size * (1 + (kind == "lstm")), dtype=dtype).requires_grad_() for _ in inputs]
    return layers, xs, states, torch.rand(sequences * length) < 0.25


def reference(layer: nn.Module, x: Tensor, state: Tensor, starts: Tensor) -> Tensor:
    """Outputs (B, H) of torch's layer, each step by itself."""
    outputs = []
    by_step = (tensor.unflatten(0, (len(state), -1)).unbind(1) for tensor in (x, starts.unsqueeze(1)))
    for seen, begun in zip(*by_step, strict=True):
        state = torch.where(begun, 0.0, state).unsqueeze(0)
        if isinstance(layer, nn.LSTM):
            (output,), (hidden, cell) = layer(seen.unsqueeze(0), tuple(x.contiguous() for x in state.chunk(2, -1)))
            state = torch.cat((hidden, cell), -1)[0]
        else:
            (output,), (state,) = layer(seen.unsqueeze(0), state)
        outputs.append(output)
    return torch.stack(outputs, 1).flatten(0, 1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("length", "sequences", "sizes"), [(1, 3, (5, 4)), (5, 1, (1, 1, 3)), (16, 4, (64, 64, 64)), (37, 33, (42, 10))]
)
@pytest.mark.parametrize(
    ("dtype", "of_outputs", "of_gradients"), [(torch.float32, 2e-6, 2e-5), (torch.float64, 1e-14, 1e-12)], ids=str
)
def test_they_are_those_of_torch(kind, length, sequences, sizes, dtype, of_outputs, of_gradients):
    layers, xs, states, starts = make(kind, length, sequences, sizes, dtype)
    found = run_on_host(kind, xs, states, starts, [layer.all_weights[0] for layer in layers])
    expected = [reference(*arguments, starts) for arguments in zip(layers, xs, states, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=0.0, atol=of_outputs)
    weights = [torch.randn_like(x) / x.numel() for x in expected]
    wanted = [*xs, *states, *(p for layer in layers for p in layer.parameters())]
    both = (
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)), wanted)
        for outputs in (found, expected)
    )
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=of_gradients, atol=of_gradients)


@pytest.mark.parametrize("kind", LAYERS)
def test_derivatives_of_derivatives(kind):
    layers, xs, states, starts = make(kind, 3, 2, (2, 2, 1))
    weights = [weight.detach().requires_grad_() for layer in layers for weight in layer.all_weights[0]]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return (*run_on_host(kind, tensors[:2], tensors[2:4], starts, [tensors[4:8], tensors[8:]]),)

    assert starts.any() and not starts.all()
    assert torch.autograd.gradcheck(function, (*xs, *states, *weights))
    assert torch.autograd.gradgradcheck(function, (*xs, *states, *weights))


@pytest.mark.parametrize("kind", LAYERS)
def test_only_what_needs_gradients_gets_them(kind):
    (layer,), (x,), (state,), starts = make(kind, 4, 2, (5, 3), torch.float32)
    layer.weight_ih_l0.requires_grad_(False)
    (outputs,) = run_on_host(kind, [x], [state.detach()], starts, layer.all_weights)
    outputs.sum().backward(retain_graph=True)
    assert layer.weight_ih_l0.grad is None and state.grad is None
    assert all(tensor.grad.abs().max() > 0.0 for tensor in (x, layer.weight_hh_l0, layer.bias_ih_l0))
    first = torch.autograd.grad(outputs.sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), layer.weight_hh_l0)[0].abs().max() > 0.0
