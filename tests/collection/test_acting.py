"""The NumPy actor takes the actions that the policy would take."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo.collection.acting import TorchActor, make_actor
from lightning_ppo.collection.numpy_acting import NumpyActor
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig

STEPS, ENVS = 50, 5
NO_STARTS = np.zeros(ENVS, np.bool_)
VECTOR = spaces.Box(-np.inf, np.inf, (7,), np.float32)
MATRIX = spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(5),
    "shifted": spaces.Discrete(3, start=-1),
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "uneven box": spaces.Box(np.array([[-2.0, 0.0]]), np.array([[0.5, np.inf]]), (1, 2), np.float64),
}


def make_policy(action_space: spaces.Space, observation_space: spaces.Space = VECTOR, **kwargs) -> ActorCritic:
    policy = ActorCritic(observation_space, action_space, PolicyConfig(**kwargs), NormalizeConfig())
    with torch.no_grad():
        policy.network.actor_output.weight.normal_()
        policy.network.actor_output.bias.normal_()
        if hasattr(policy.head, "log_std"):
            policy.head.log_std.normal_()
    policy.inputs.normalizers[""].update(3.0 * torch.randn(100, *observation_space.shape) - 1.0)
    return policy


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("observation_space", [VECTOR, MATRIX], ids=["vector", "matrix"])
@pytest.mark.parametrize("hidden_sizes", [[], [16], [64, 32]], ids=str)
@torch.no_grad()
def test_both_actors_take_the_same_actions(action_space, observation_space, hidden_sizes):
    policy = make_policy(action_space, observation_space, hidden_sizes=hidden_sizes)
    observations = 20.0 * torch.randn(STEPS, ENVS, *observation_space.shape).numpy()  # some beyond the clip
    quick, plain = (kind(policy, (STEPS, ENVS), generator()) for kind in (NumpyActor, TorchActor))
    for step in range(STEPS):
        mine, theirs = quick(step, observations[step], NO_STARTS), plain(step, observations[step], NO_STARTS)
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        assert all(action in action_space for action in mine)
    assert quick.actions.dtype == plain.actions.dtype
    torch.testing.assert_close(quick.actions, plain.actions, rtol=1e-4, atol=1e-5)
    assert len(torch.unique(quick.actions.flatten(2) if quick.actions.dim() > 2 else quick.actions)) > 1


@pytest.mark.shortcut
@pytest.mark.parametrize("activation", ["relu", "elu", "silu"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.3},
        {"layer_norm": True, "dropout": 0.3},
        {"distribution": "state_gaussian"},
        {"noise_color": 1.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_so_they_do_with_other_layers_and_other_noise(activation, settings):
    color = settings.get("noise_color", 0.0)
    settings = {key: value for key, value in settings.items() if key != "noise_color"}
    policy = make_policy(ACTIONS["uneven box"], activation=activation, hidden_sizes=[64, 32], **settings).eval()
    policy.head.set_noise_color(color)
    for norm in (m for m in policy.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.weight.normal_()
        norm.bias.normal_()
    observations = 3.0 * torch.randn(STEPS, ENVS, 7).numpy()
    assert type(make_actor(policy, (STEPS, ENVS), generator())) is NumpyActor
    quick, plain = (kind(policy, (STEPS, ENVS), generator()) for kind in (NumpyActor, TorchActor))
    for step in range(STEPS):
        mine, theirs = quick(step, observations[step], NO_STARTS), plain(step, observations[step], NO_STARTS)
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quick.actions, plain.actions, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_are_those_of_the_policy_at_the_rollout():
    policy = make_policy(ACTIONS["box"])
    observations = np.ones((ENVS, 7), np.float32)

    def sampled(kind: type) -> torch.Tensor:
        actor = kind(policy, (1, ENVS), generator())
        actor(0, observations, NO_STARTS)
        return actor.actions

    before = sampled(NumpyActor)
    for parameter in policy.network.actor_trunk.parameters():
        parameter.mul_(0.5)
    assert not torch.allclose(before, sampled(NumpyActor))
    torch.testing.assert_close(sampled(NumpyActor), sampled(TorchActor), rtol=1e-4, atol=1e-5)


@pytest.mark.shortcut
def test_which_actor_is_taken():
    box = ACTIONS["box"]

    def kind(policy: ActorCritic) -> type:
        return type(make_actor(policy, (2, ENVS), generator()))

    assert kind(make_policy(box)) is NumpyActor
    assert kind(make_policy(box, shared_trunk=True)) is NumpyActor
    assert kind(make_policy(box, activation="gelu")) is TorchActor
    assert kind(make_policy(box, distribution="beta")) is TorchActor
    assert kind(make_policy(box).double()) is TorchActor
    for settings in ({}, {"layer_norm": True}):
        changed = make_policy(box, **settings)
        changed.network.actor_trunk.mlp.append(torch.nn.LayerNorm(64))
        assert kind(changed) is TorchActor
    assert kind(make_policy(box, layer_norm=True)) is NumpyActor
    without = make_policy(box, layer_norm=True)
    without.network.actor_trunk.mlp[1] = torch.nn.LayerNorm(64, elementwise_affine=False)
    assert kind(without) is TorchActor
    steep = make_policy(box, activation="elu")
    for mlp in (steep.network.actor_trunk.mlp, steep.network.critic_trunk.mlp):
        mlp[1].alpha = mlp[3].alpha = 2.0
    assert kind(steep) is TorchActor

    class Own(ActorCritic):
        def act(self, *arguments):
            return super().act(*arguments)

    assert kind(Own(VECTOR, box)) is TorchActor
    with torch.autocast("cpu", torch.bfloat16):
        assert kind(make_policy(box)) is TorchActor
