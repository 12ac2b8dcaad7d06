"""Features that are large and nearly constant: actions are sampled from the distribution by which they are scored."""

from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from torch import Tensor

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.numpy_acting import NumpyActor
from lightning_ppo.interop.export import Deployed
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.normalization import ObservationNormalizer
from lightning_ppo.settings.networks import PolicyConfig
from tests.kit.envs import vector
from tests.kit.training import make_trainer

SPREADS = {0.0: 1e-3, 1e3: 1e-2, 101325.1: 0.1, -1e7: 2.0}
"""Of offsets: standard deviations of which float32 still shows a few values."""


class Offset(gymnasium.Env):
    """Shows a constant, and two features around it of which one hardly varies."""

    def __init__(self, offset: float = 0.0, action_space: spaces.Space | None = None, dtype: type = np.float32) -> None:
        self.offset, self.spread = offset, SPREADS[offset]
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype)
        if np.issubdtype(dtype, np.integer):
            self.observation_space = spaces.Box(-(2**30), 2**30, (3,), dtype)
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _observation(self) -> np.ndarray:
        noise = self.np_random.standard_normal(2) * self.spread * np.array([1.0, 10.0])
        return (self.offset + np.append(0.0, noise)).astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), 0.0, False, self.t == 20, {}


HEADS = {
    "discrete": (spaces.Discrete(4), "gaussian"),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), "gaussian"),
    "binary": (spaces.MultiBinary(3), "gaussian"),
    "both": (spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,)))), "gaussian"),
    **{
        name: (spaces.Box(-2.0, 1.0, (2,)), name)
        for name in ("gaussian", "state_gaussian", "tanh_gaussian", "beta", "gsde")
    },
}


def make_policy(env: gymnasium.vector.VectorEnv, **settings) -> ActorCritic:
    torch.manual_seed(0)
    spaces_ = env.single_observation_space, env.single_action_space
    policy = ActorCritic(*spaces_, PolicyConfig(hidden_sizes=[16], **settings))
    with torch.no_grad():  # so that what is seen matters
        policy.network.actor_output.weight.normal_()
    return policy


def seen_before(policy: ActorCritic, make: Callable[[], Collector]) -> Collector:
    """Return a collector after a rollout that has filled the statistics."""
    collecting = make()
    policy.update_statistics(collecting.collect(), lambda x: x)
    return collecting


@pytest.mark.exhaustive(strength=2)
@pytest.mark.parametrize("offset", SPREADS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("way", ["usual", "torch", "recorded"])
@pytest.mark.parametrize("core", [None, "gru"])
def test_stored_actions_are_the_samples_of_the_stored_distributions(
    imitation,
    monkeypatch,
    offset,
    head,
    way,
    core,
):
    action_space, distribution = HEADS[head]
    if way != "usual":
        monkeypatch.setattr(NumpyActor, "suits", staticmethod(lambda policy: False))
    env = vector([partial(Offset, offset, action_space)] * 4)
    policy = make_policy(env, distribution=distribution, core=core, core_size=8)
    generator = torch.Generator().manual_seed(0)
    make = partial(Collector, env, policy, 32, generator, [1, 2, 3, 4], compile=way == "recorded")
    collecting = seen_before(policy, make)
    before = torch.Generator()
    before.set_state(generator.get_state())
    rollout = collecting.collect()
    noise = policy.head.noise((32, 4), before)
    expected = policy.head.sample(rollout.distribution, noise)
    if not rollout.actions.is_floating_point():
        assert (rollout.actions == expected).float().mean() > 0.98  # two choices may be all but equal
    elif distribution == "beta":
        close = (rollout.actions - expected).abs() < 1e-3  # another attempt may be accepted
        assert close.float().mean() > 0.98
    else:
        torch.testing.assert_close(rollout.actions, expected, rtol=0.0, atol=2e-3)
    assert rollout.distribution.flatten(0, 1).std(0).max() > 0.1  # the policy looks at what varies


@pytest.mark.parametrize("offset", SPREADS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64], ids=lambda dtype: dtype.__name__)
def test_normalised_features_have_mean_0_and_deviation_1(offset, dtype):
    rng = np.random.default_rng(0)
    scale = max(1.0, SPREADS[offset]) * 3.0 if np.issubdtype(dtype, np.integer) else SPREADS[offset]
    samples = (offset + scale * rng.standard_normal((1000, 2)) * [0.0, 1.0]).astype(dtype)
    env = vector([partial(Offset, offset)])
    policy = make_policy(env)
    normalizer = policy.inputs.parts[0] = ObservationNormalizer((2,), epsilon=1e-12)
    seen = torch.from_numpy(samples.astype(np.float32) if dtype is np.float64 else samples)
    for part in seen.split(100):
        normalizer.update(part)
    found = normalizer(torch.from_numpy(samples))
    assert found[:, 0].abs().max() < 1e-3
    torch.testing.assert_close(found[:, 1].mean(), torch.tensor(0.0), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(found[:, 1].std(correction=0), torch.tensor(1.0), rtol=0.0, atol=1e-3)
    numbers = seen.double()
    exact = (numbers - numbers.mean(0)) / (numbers.var(0, correction=0) + 1e-12).sqrt()
    torch.testing.assert_close(found[:, 1], exact[:, 1].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.inverse(found).double(), numbers, rtol=1e-6, atol=1e-6)


def test_float64_shows_what_float32_cannot():
    samples = 1e7 + 1e-4 * torch.randn(1000, 2, dtype=torch.float64)
    normalizer = ObservationNormalizer((2,), epsilon=1e-16).double()
    normalizer.update(samples)
    torch.testing.assert_close(normalizer(samples).std(0), torch.ones(2).double(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("offset", SPREADS)
@torch.no_grad()
def test_what_is_exported_acts_alike(offset):
    env = vector([partial(Offset, offset)] * 4)
    policy = make_policy(env)
    collecting = seen_before(policy, partial(Collector, env, policy, 32, torch.Generator(), [1, 2, 3, 4]))
    observations = collecting.collect().observations.flatten(0, 1)
    deployed = Deployed(policy, env.single_observation_space, env.single_action_space)
    program = torch.export.export(deployed, (observations,)).module()
    outputs = policy.distribution(observations)[:, :2].clamp(-1.0, 1.0)
    torch.testing.assert_close(program(observations)[0], outputs, rtol=1e-4, atol=1e-4)
    assert outputs.std(0).min() > 0.1


class Scores(PPO):
    """Keeps the standardised actions of each rollout."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.scores: list[Tensor] = []

    def training_step(self, rollout, batch_idx):
        mean, log_std = rollout.distribution.chunk(2, -1)
        self.scores.append((rollout.actions - mean) / log_std.exp())
        super().training_step(rollout, batch_idx)


@pytest.mark.ranks
@pytest.mark.parametrize("rollout", [{"processes": 2}, {"overlap": True}], ids=str)
def test_other_processes_sample_as_they_score(rollout):
    pl.seed_everything(0, verbose=False)
    env = "tests.policy.test_large_offsets:Offset"
    data = RolloutDataModule(
        env, 4, 64, rollouts_per_epoch=3, backend="sync", env_kwargs={"offset": 101325.1}, **rollout
    )
    update = {"epochs": 1, "minibatch_size": 256}
    model = Scores(data.observation_space, data.action_space, update=update, policy={"hidden_sizes": [16]})
    with torch.no_grad():
        model.policy.network.actor_output.weight.normal_()
    make_trainer(max_epochs=1).fit(model, data)
    for scores in model.scores:
        assert scores.mean().abs() < 0.2 and 0.9 < scores.std() < 1.1 and scores.abs().max() < 5.0
