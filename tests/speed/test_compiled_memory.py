"""`compile=true` with memory: one graph without a fallback, which learns what the eager update learns."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_ppo import PPO
from lightning_ppo.policy.recurrence import RecurrentCore, run_cores
from tests.kit.devices import Looks
from tests.kit.memory import TRANSFORMER, make_core, make_pair, states_of, step_by_step, whole
from tests.kit.training import make_trainer


class Decay(nn.Module):
    """A core of a user's own: a mean that forgets."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.num_features = self.state_size = num_inputs
        self.rate = nn.Parameter(torch.full((num_inputs,), 0.5))

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for seen in x.unbind(0):
            states = self.rate * states + (1.0 - self.rate) * seen
            outputs.append(states)
        return torch.stack(outputs), states


class Compiled(PPO):
    """Remembers whether its updates were compiled."""

    def on_train_batch_end(self, *_):
        self.compiled = self.minibatch_update._compiled is not None


def learn(compile: bool, env: str, policy: dict, precision: str) -> Compiled:
    model, data = make_pair(env, 2, Compiled, policy=policy, compile=compile)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile")
        make_trainer(precision=precision).fit(model, data)
    assert model.compiled == compile
    return model


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("env", "policy", "precision"),
    [
        pytest.param("CartPole-v1", {"core": "lstm"}, "32-true", marks=pytest.mark.representative),
        ("CartPole-v1", {"core": "gru", "layer_norm": True}, "64-true"),
        ("tests.kit.rich_envs:Guided", {"core": "lstm", "shared_trunk": True, "hidden_sizes": []}, "32-true"),
        ("tests.kit.rich_envs:Guided", {"core": "gru", "hidden_sizes": []}, "32-true"),
        ("CartPole-v1", {"core": "tests.speed.test_compiled_memory.Decay"}, "32-true"),
        ("CartPole-v1", {"core": "lstm"}, "bf16-mixed"),
        ("tests.kit.rich_envs:Guided", TRANSFORMER, "32-true"),
    ],
    ids=str,
)
def test_a_compiled_update_is_the_eager_one(env, policy, precision):
    eager, compiled = (learn(compile, env, policy, precision) for compile in (False, True))
    tolerance = {"32-true": 1e-4, "64-true": 1e-9, "bf16-mixed": 1e-2}[precision]
    for (name, one), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer", "own"])
def test_on_other_devices_nothing_is_looked_at(kind, monkeypatch):
    """What runs there, here: the same as single steps, and no value that the host would wait for."""
    monkeypatch.setattr("lightning_ppo.policy.recurrence.on_host", lambda states: False)
    core = Decay(5) if kind == "own" else make_core(kind, 5)
    x, states, starts = torch.randn(9, 4, 5), states_of(core, 4), torch.rand(9, 4) < 0.3
    expected, _ = step_by_step(core, x, states, starts)
    with Looks() as looks:
        found = whole(core, x, states, starts)
        found.square().sum().backward()
    assert looks.count == 0
    torch.testing.assert_close(found, expected)


def test_two_cores_may_share_their_inputs():
    cores = [RecurrentCore("gru", 5, 6) for _ in range(2)]
    x, states, starts = torch.randn(12, 5, requires_grad=True), torch.randn(3, 12), torch.rand(12) < 0.3

    def function(x: Tensor) -> list[Tensor]:
        return run_cores(cores, [x, x], states, starts)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        found = compiled(x)
    torch.testing.assert_close(found, function(x))
