"""The transformer: what it computes, as loops and formulas of the papers have it, and what its state holds."""

import math

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.recurrence import run_core
from lightning_ppo.policy.transformer import Attention, Gate, Layer, TransformerCore
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.speed import switch
from lightning_ppo.support.errors import ConfigError
from tests.kit.memory import TRANSFORMER, make_core, states_of, step_by_step, whole


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    switch.turn(True)


def gated(gate: Gate, stream: Tensor, update: Tensor) -> Tensor:
    """Parisotto et al. 2020, equation 8, of vectors."""
    of_r, of_z, of_h = gate.of_update.weight.chunk(3)
    bias_r, bias_z, bias_h = gate.of_update.bias.chunk(3)
    stream_r, stream_z = gate.of_stream.weight.chunk(2)
    r = torch.sigmoid(of_r @ update + stream_r @ stream + bias_r)
    z = torch.sigmoid(of_z @ update + stream_z @ stream + bias_z)
    h = torch.tanh(of_h @ update + gate.of_reset.weight @ (r * stream) + bias_h)
    return (1.0 - z) * stream + z * h


def attended(attention: Attention, past: list[Tensor], now: Tensor) -> Tensor:
    """Attention of one step to itself and the past, oldest first: keys and values of each step, one head at a time."""
    steps, size = [*past, now], len(now) // attention.heads
    found = []
    for head in range(attention.heads):
        own = slice(head * size, (head + 1) * size)
        query = (attention.queries.weight @ now + attention.queries.bias)[own]
        scores = [
            query @ (attention.keys.weight @ step)[own] / math.sqrt(size)
            + attention.distances[head, -1 - (len(past) - number)]
            for number, step in enumerate(steps)
        ]
        weights = torch.stack(scores).softmax(0)
        found.append(sum(w * (attention.values.weight @ step)[own] for w, step in zip(weights, steps, strict=True)))
    return torch.cat(found)


def stepped(layer: Layer, past: list[Tensor], now: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer makes of a step, and what its attention keeps of it."""
    kept = torch.nn.functional.layer_norm(now, now.shape)
    now = gated(layer.attention_gate, now, attended(layer.attention, past, kept))
    return gated(layer.mlp_gate, now, layer.mlp(now)), kept


def naive(core: TransformerCore, x: Tensor, states: Tensor, starts: Tensor) -> Tensor:
    """Return the outputs (T, N, D) of x (T, N, I), one step of one environment after the other."""
    outputs = [[] for _ in x]
    for env, state in enumerate(states):
        memories = state[:-1].view(len(core.layers), core.memory, -1)
        pasts = [list(memory)[core.memory - int(state[-1]) :] for memory in memories]
        for t, now in enumerate(x[:, env]):
            if starts[t, env]:
                pasts = [[] for _ in core.layers]
            stream = core.embedding(now)
            for layer, past in zip(core.layers, pasts, strict=True):
                stream, kept = stepped(layer, past[-core.memory :], stream)
                past.append(kept)
            outputs[t].append(stream)
    return torch.stack([torch.stack(step) for step in outputs])


@pytest.mark.parametrize("length", [1, 3, 14])
@pytest.mark.parametrize("plain", [False, True])
def test_outputs_and_gradients_are_those_of_loops(length, plain):
    """Sequences longer and shorter than the memory, and single steps, with episodes that start in the middle."""
    switch.turn(not plain)
    core = make_core("transformer", 3)
    x, states = torch.randn(length, 4, 3, requires_grad=True), states_of(core, 4)
    states[:, -1] = torch.tensor([0.0, 2.0, 5.0, 5.0])
    states.requires_grad_()
    starts = torch.rand(length, 4) < 0.2
    starts[0, 3] = True
    assert length == 1 or starts[1:].any()
    weights = torch.randn(length, 4, core.num_features)
    wanted = [x, states, *core.parameters()]
    found, expected = whole(core, x, states, starts), naive(core, x, states, starts)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)
    ours, theirs = (torch.autograd.grad((way * weights).sum(), wanted, allow_unused=True) for way in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    assert ours[1][3].count_nonzero() == 0 and ours[1][2, :-1].all()  # a memory that is over, and one that is full


@pytest.mark.parametrize("size", [8, 64])
def test_both_orders_of_products_are_one_attention(size):
    """Of few queries no keys and values are computed; what comes out is the same as of many."""
    attention = Attention(size, 4, 6)
    seen = torch.randn(2, 6 + 9, size)
    many = attention(seen, torch.zeros(2, 1, 9, 15))
    for step in range(9):
        one = attention(seen[:, step : step + 7], torch.zeros(2, 1, 1, 7))
        torch.testing.assert_close(one, many[:, step : step + 1], rtol=0.0, atol=1e-12)


def test_the_state_is_the_last_inputs_of_every_layer_and_their_number():
    core = make_core("transformer", 3)
    x, starts = torch.randn(9, 2, 3), torch.zeros(9, 2, dtype=torch.bool)
    starts[4, 1] = True
    _, after = step_by_step(core, x, torch.zeros(2, core.state_size), starts)
    assert after[:, 0, -1].tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert after[:, 1, -1].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 5]
    memories = after[..., :-1].unflatten(-1, (2, 5, 8))
    of_inputs = torch.nn.functional.layer_norm(core.embedding(x), (8,))
    torch.testing.assert_close(memories[8, :, 0], of_inputs[4:].transpose(0, 1))
    # nothing is left of the episode before
    assert memories[4, 1, :, :4].count_nonzero() == 0 and memories[4, 1, :, 4].all()


def test_a_step_sees_as_far_as_its_memory_and_as_many_layers_reach():
    core = make_core("transformer", 3)
    x = torch.randn(20, 1, 3, requires_grad=True)
    outputs = whole(core, x, torch.zeros(1, core.state_size), torch.zeros(20, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(outputs[15].sum(), x)
    seen = gradient.abs().amax((1, 2)) > 0.0
    assert seen.nonzero().flatten().tolist() == list(range(15 - 2 * 5, 16))


def test_an_untrained_transformer_hardly_changes_what_goes_in():
    """Its gates are almost closed, so that an agent begins as one without memory."""
    core = TransformerCore(8, 8, layers=3, heads=2, memory=5)
    x = torch.randn(30, 8)
    outputs, _ = run_core(core, x, torch.zeros(30, core.state_size), torch.zeros(30, dtype=torch.bool))
    assert torch.cosine_similarity(outputs, core.embedding(x)).mean() > 0.7
    assert not torch.allclose(outputs, core.embedding(x), atol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"core_heads": 3}, "policy.core_heads: 3 does not divide policy.core_size=8"),
        ({"core_layers": 0}, "policy.core_layers: must be at least 1, got 0"),
        ({"core_memory": 0}, "policy.core_memory: must be at least 1, got 0"),
    ],
)
def test_transformers_that_cannot_be(settings, message):
    with pytest.raises(ConfigError) as caught:
        PolicyConfig(**TRANSFORMER | settings)
    assert message in str(caught.value)


def test_settings_reach_the_core():
    policy = ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), PolicyConfig(**TRANSFORMER, hidden_sizes=[6]))
    core = policy.network.actor_trunk.core
    assert core.embedding.weight.shape == (8, 6) and len(core.layers) == 2
    assert {(layer.attention.heads, layer.attention.distances.shape[1]) for layer in core.layers} == {(2, 6)}
    assert core.state_size == 2 * 5 * 8 + 1 and policy.state_size == 2 * core.state_size
