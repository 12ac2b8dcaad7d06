"""Graphs that are called past the tracer: with what changes from call to call, and only where nothing else happens."""

from typing import NamedTuple

import pytest
import torch

from lightning_ppo import PPO
from lightning_ppo.speed import compiled_gradients
from lightning_ppo.speed.direct_calls import DirectCalls
from tests.kit.training import make_pair, make_trainer


class Batch(NamedTuple):
    values: torch.Tensor


class Pair(NamedTuple):
    total: torch.Tensor
    doubled: torch.Tensor


def uncompiled(graph, inputs):
    """Return a graph as it is: a backend that takes no time."""
    return graph.forward


def traced(function):
    direct = DirectCalls(uncompiled)
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=direct)

    def call(*arguments):
        results = compiled(*arguments)
        direct.learn(arguments, results)
        return results

    return call, direct


@pytest.fixture(autouse=True)
def _forget_what_was_traced():
    yield
    torch._dynamo.reset()


def test_arguments_change_and_everything_else_is_that_of_the_last_traced_call():
    weight = torch.tensor([10.0])

    def scaled(batch, rows, scale):
        taken = batch[0].index_select(0, rows) * scale * weight
        return taken.sum(), Pair(taken.mean(), 2 * taken)

    call, direct = traced(scaled)
    batch, rows, scale = Batch(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([0, 1]), torch.tensor(1.0)
    assert direct.run((batch, rows, scale)) is None
    call(batch, rows, scale)
    total, (mean, doubled) = direct.run((batch, torch.tensor([2, 2]), torch.tensor(0.5)))
    assert (total, mean, doubled.tolist()) == (30.0, 15.0, [30.0, 30.0])
    assert isinstance(direct.run((batch, rows, scale))[1], Pair)
    weight.fill_(1.0)
    assert direct.run((batch, rows, scale))[0] == 3.0
    assert direct.run((Batch(batch.values), rows, scale)) is None  # another batch goes through the tracer
    direct.forget()
    assert direct.run((batch, rows, scale)) is None


def test_results_that_are_no_outputs_keep_to_the_tracer():
    call, direct = traced(lambda values: (values * 2, 1.0))
    values = torch.tensor([1.0])
    assert call(values)[1] == 1.0
    assert direct.run((values,)) is None


class OwnLoss(PPO):
    """Its loss could do more than compute."""

    def policy_loss(self, terms):
        return super().policy_loss(terms)


class OwnStep(PPO):
    """What it does before a step could replace what the loss reads."""

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        (PPO, {}, 2 * (7 * [True])),
        (PPO, {"recompute_advantages": True}, 2 * (3 * [True] + [False] + 3 * [True])),
        (OwnLoss, {}, []),
        (OwnStep, {}, []),
    ],
)
def test_an_iteration_is_traced_once_for_each_batch_and_learns_the_same(model, settings, expected, monkeypatch):
    monkeypatch.setattr(compiled_gradients, "cpu_compiler", uncompiled)
    run, past = DirectCalls.run, []

    def noted(self, arguments):
        results = run(self, arguments)
        past.append(results is not None)
        return results

    def fit(method):
        monkeypatch.setattr(DirectCalls, "run", method)
        update = {"epochs": 2, "minibatch_size": 16, **settings}
        agent, data = make_pair(model=model, rollouts_per_epoch=2, update=update, compile=True)
        make_trainer().fit(agent, data)
        return torch.cat([p.detach().flatten() for p in agent.parameters()])

    weights = fit(noted)
    assert past == expected
    assert torch.equal(weights, fit(lambda self, arguments: None))
