"""Training on a device that is not there: what the CPU computes, no two devices in one operation, no needless wait."""

import pytest
import pytorch_lightning as pl
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.envs.torch_envs import TorchCartPole, TorchPendulum
from lightning_ppo.update.loss_terms import LossTerm
from tests.kit.elsewhere import ELSEWHERE, HOST, PACKAGE, Elsewhere, Moved, Watch, elsewhere, strategy
from tests.kit.spaces import ACTIONS, OBSERVATIONS, Anything
from tests.kit.training import make_trainer

COPIES, SEQUENCE = 4, 8
NOISE = "policy/distributions/continuous.py:noise _local_scalar_dense"
MEANT = {
    NOISE: 1,
    "collection/device_storage.py:_boundary nonzero": 1,
    "collection/device_storage.py:_check _local_scalar_dense": 1,
    "rollout/episodes.py:add index": 2,
    "rollout/episodes.py:add _to_copy": 1,
    "collection/stream.py:_estimate index": 1,
    "rollout/shapes.py:final index": 2,
    "update/reports.py:report_iteration index": 2,
    "update/reports.py:report_iteration _to_copy": 1,
    "policy/inputs.py:update index": 1,
}
"""Where the host waits in an iteration, and how often: at the end of a rollout, and of an update."""

NORMS = {"update/minibatch_update.py:_judge _local_scalar_dense": 8}
"""Optimizers that are not fused are told by the host not to step where a norm is not finite."""

REGION = "update/trust_region.py:_step", "update/trust_region.py:conjugate_gradients", "speed/flat.py:<setcomp>"
"""Where a step within a trust region needs to know how long it may be, and Adam how old the critic is."""


class Own(nn.Module):
    """A memory of one's own, which is a mean that decays."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(num_inputs, 4)
        self.num_features = self.state_size = 4

    def forward(self, x, states):
        found = []
        for seen in x.unbind(0):
            states = 0.9 * states + 0.1 * self.inner(seen)
            found.append(states)
        return torch.stack(found), states


class Quiet(LossTerm):
    """Makes values small."""

    def forward(self, policy, minibatch, now):
        return now.values.square()


def env_of(kind: object, device: torch.device, mode: AutoresetMode = AutoresetMode.SAME_STEP, masked: bool = False):
    if isinstance(kind, type):
        return kind(COPIES, device=str(device), max_episode_steps=5)
    seen, taken = OBSERVATIONS[kind[0]], ACTIONS[kind[1]][0]
    copies = [lambda length=length: Anything(seen, taken, masked, length) for length in (2, 3, 5, 7)]
    return Moved(SyncVectorEnv(copies, autoreset_mode=mode), device)


def train(device: torch.device, kind: object, num_steps: int = SEQUENCE, epochs: int = 2, **given) -> PPO:
    pl.seed_everything(3, verbose=False)
    env = env_of(kind, device, **{key: given.pop(key) for key in ("mode", "masked") if key in given})
    data = RolloutDataModule(env, num_steps=num_steps, rollouts_per_epoch=2)
    flags = given.pop("trainer", {})
    policy = {"hidden_sizes": [8], "core_size": 4} | given.pop("policy", {})
    length = SEQUENCE if policy.get("core") else None
    update = {"epochs": epochs, "minibatch_size": 16, "sequence_length": length} | given.pop("update", {})
    model = PPO(data.observation_space, data.action_space, update=update, policy=policy, compile=False, **given)
    how = {} if device == HOST else {"accelerator": "auto", "strategy": strategy()}
    make_trainer(**how, **flags).fit(model, data)
    return model


def compare(monkeypatch: pytest.MonkeyPatch, kind: object, **given) -> Watch:
    """Train here and elsewhere, compare the weights, and return what was watched."""
    expected = train(HOST, kind, **given)
    with elsewhere(monkeypatch) as watch:
        found = train(ELSEWHERE, kind, **given)
        found = found.to(HOST)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert type(ours) is nn.Parameter
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return watch


def check_waits(watch: Watch, allowed: dict[str, int], iterations: int = 2) -> None:
    found = {wait: watch.waits.count(wait) for wait in watch.waits}
    most = {wait: iterations * count for wait, count in allowed.items()}
    assert {wait: n for wait, n in found.items() if n > most.get(wait, 0)} == {}


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize("core", [None, "lstm", "gru", "own"])
@pytest.mark.parametrize("distribution", ["gaussian", "state_gaussian", "tanh_gaussian", "beta", "gsde", "discrete"])
def test_torch_environments(monkeypatch, distribution, core):
    kind = TorchCartPole if distribution == "discrete" else TorchPendulum
    core = f"{__name__}.Own" if core == "own" else core
    policy = {"core": core} | ({} if distribution == "discrete" else {"distribution": distribution})
    check_waits(compare(monkeypatch, kind, policy=policy), MEANT)


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("core", [None, "lstm"])
@pytest.mark.parametrize("seen", ["vector", "image", "dict", "nested"])
@pytest.mark.parametrize("taken", ["discrete", "multi-discrete", "multi-binary", "tuple", "mixed gaussian"])
def test_spaces(monkeypatch, seen, taken, core, masked, mode):
    # else Adam takes the last digit of a small gradient for a whole step
    given = {"policy": {"core": core}, "optimizer": {"epsilon": 0.1}}
    watch = compare(monkeypatch, (seen, taken), masked=masked, mode=mode, **given)
    of_parts = "policy/inputs.py:update index", "rollout/shapes.py:final index", NOISE
    check_waits(watch, MEANT | dict.fromkeys(of_parts, 9))


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize(
    "settings",
    [
        *({"objective": name} for name in ("surrogate", "kl_penalty")),
        {"objective": "policy_gradient", "epochs": 1},
        {"update": {"recompute_advantages": True, "value_clip_range": 0.2, "max_grad_norm": None}},
        {"loss_terms": [{"class_path": f"{__name__}.Quiet", "weight": 0.1}], "policy": {"shared_trunk": True}},
        {"normalize": {"observations": False, "rewards": False}},
    ],
    ids=str,
)
def test_settings(monkeypatch, settings):
    check_waits(compare(monkeypatch, TorchPendulum, **settings), MEANT)


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({"optimizer": {"class_path": "torch.optim.AdamW"}}, NORMS),
        ({"plain": True}, NORMS),
        ({"update": {"target_kl": 1e9}}, {"update/ppo.py:_moved_too_far _local_scalar_dense": 2}),
        (
            {"objective": "adaptive_kl"},
            {
                f"update/policy_objectives.py:{name} _local_scalar_dense": 1
                for name in ("after_iteration", "coefficients")
            },
        ),
        ({"objective": "trpo"}, {f"{place} _local_scalar_dense": 20 for place in REGION}),
    ],
    ids=["AdamW", "plain", "target_kl", "adaptive_kl", "trpo"],
)
def test_what_is_decided_between_epochs_is_looked_at(monkeypatch, settings, waits):
    watch = compare(monkeypatch, TorchPendulum, **settings)
    check_waits(watch, MEANT | waits)


def test_neither_steps_nor_minibatches_wait(monkeypatch):
    """Longer rollouts and more epochs have the host wait no more often, and send nothing more there."""
    counts = []
    for num_steps, epochs in ((SEQUENCE, 1), (2 * SEQUENCE, 2)):
        with elsewhere(monkeypatch) as watch:
            train(ELSEWHERE, TorchCartPole, num_steps, epochs, policy={"core": "lstm"})
        counts.append((sorted(watch.waits), sorted(watch.sent)))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("policy", [{}, {"core": "lstm"}], ids=["mlp", "lstm"])
def test_deterministic_training_calls_nothing_that_torch_refuses_then(monkeypatch, policy):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which Lightning sets
    try:
        check_waits(compare(monkeypatch, TorchPendulum, policy=policy, trainer={"deterministic": True}), MEANT)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_watch_sees_what_it_looks_for(monkeypatch):
    """Else the tests above would show nothing."""
    scope: dict = {}
    exec(compile("def next_rollout(f): return f()", f"{PACKAGE}somewhere.py", "exec"), scope)
    next_rollout = scope["next_rollout"]  # a function of the package by that name is watched
    with elsewhere(monkeypatch) as watch:
        there = torch.ones(3, device=ELSEWHERE)
        assert isinstance(there, Elsewhere) and there.device == ELSEWHERE
        looks = [there.sum().item, there.cpu, there.nonzero, lambda: there[there > 0], lambda: bool(there.any())]
        for number, look in enumerate(looks, 1):
            next_rollout(look)
            assert len(watch.waits) == number
        next_rollout(lambda: there.copy_(torch.ones(3)))
        assert len(watch.sent) == 1 and len(watch.waits) == len(looks)
        with pytest.raises(AssertionError, match="tensors of two devices"):
            there + torch.ones(3)
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
