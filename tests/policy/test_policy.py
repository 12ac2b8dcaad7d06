"""The actor-critic: one computation for acting and learning, gradient routing, prediction, and spaces as data."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import Tensor

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import UnsupportedSpaceError
from lightning_ppo.support.spaces import space_from_spec, space_leaves, space_to_spec
from tests.kit.collecting import transitions

BATCH = 31
OBSERVATIONS = spaces.Box(-10.0, 10.0, (3,), np.float32)
MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "offset discrete": spaces.Discrete(3, start=5),
    "one choice": spaces.Discrete(1),
    "box": spaces.Box(-2.0, 2.0, (1,), np.float32),
    "asymmetric box": spaces.Box(np.float32([0.1, -3.0]), np.float32([0.7, 50.0]), dtype=np.float32),
    "unbounded box": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "matrix box": spaces.Box(-MATRIX, MATRIX, dtype=np.float32),
    "float64 box": spaces.Box(-0.1, 0.1, (2,), np.float64),
}

every_action_space = pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS.keys())
some_action_spaces = pytest.mark.parametrize(
    "space", [ACTIONS["discrete"], ACTIONS["matrix box"]], ids=["discrete", "box"]
)


def actor_critic(space: Space, observations: Space = OBSERVATIONS, gain: float = 1.0, **policy: Any) -> ActorCritic:
    """An agent whose normaliser has seen data; `gain` scales its policy head, so that the outputs differ visibly."""
    agent = ActorCritic(observations, space, PolicyConfig(hidden_sizes=[16, 16], **policy))
    agent.inputs.normalizers[""].update(2.0 + 3.0 * torch.randn(100, *observations.shape))
    with torch.no_grad():
        agent.network.actor_output.weight.mul_(gain)
    return agent


def observe(count: int = BATCH, shape: tuple[int, ...] = (3,)) -> Tensor:
    return 2.0 + 3.0 * torch.randn(count, *shape)


def act(agent: ActorCritic, observations: Tensor, seed: int = 0) -> Tensor:
    noise = agent.head.noise((len(observations),), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return agent.act(observations, noise)[0]


# ---------------------------------------------------------------- acting and learning


@pytest.mark.parametrize("shared", [False, True], ids=["two trunks", "shared trunk"])
@every_action_space
def test_act_and_evaluate_are_one_computation(space: Space, shared: bool) -> None:
    agent = actor_critic(space, gain=300.0, shared_trunk=shared)
    observations = observe()
    actions = act(agent, observations)
    assert actions.shape == (BATCH, *agent.head.action_shape) and actions.dtype == agent.head.action_dtype

    distribution = agent.distribution(observations)
    evaluation = agent.evaluate(transitions(observations, actions))
    assert distribution.shape == (BATCH, agent.head.num_parameters)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(evaluation.distribution, distribution, **close)
    torch.testing.assert_close(evaluation.log_probs, agent.head.log_prob(distribution, actions), **close)
    torch.testing.assert_close(evaluation.entropies, agent.head.entropy(distribution), **close)
    torch.testing.assert_close(evaluation.values, agent.value(observations), **close)
    assert evaluation.log_probs.shape == evaluation.entropies.shape == evaluation.values.shape == (BATCH,)


@pytest.mark.parametrize("count", [1, 2, BATCH])
@some_action_spaces
def test_values_have_one_number_per_observation(space: Space, count: int) -> None:
    agent, observations = actor_critic(space), observe(count)
    values = agent.value(observations)
    assert values.shape == (count,)
    # a row does not depend on the others
    torch.testing.assert_close(values, torch.cat([agent.value(row.unsqueeze(0)) for row in observations]))


@some_action_spaces
def test_low_precision_trunks_give_float32_heads_that_agree(space: Space) -> None:
    agent, observations = actor_critic(space, gain=300.0), observe()
    exact = agent.distribution(observations)
    with torch.autocast("cpu", torch.bfloat16):
        distribution = agent.distribution(observations)
        actions = act(agent, observations)
        evaluation = agent.evaluate(transitions(observations, actions))
        again = agent.evaluate(transitions(observations, actions))
    assert {x.dtype for x in (distribution, *evaluation)} == {torch.float32}
    # the trunk does run in bf16
    assert not torch.equal(distribution, exact)
    # ratio 1 to the last bit between collecting and learning
    assert torch.equal(evaluation.distribution, distribution) and torch.equal(evaluation.log_probs, again.log_probs)
    torch.testing.assert_close(evaluation.log_probs, agent.head.log_prob(distribution, actions), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (4, 2), np.uint8),
        spaces.Box(-1.0, 1.0, (2, 3, 2), np.float64),
        spaces.Box(-1, 1, (1,), np.int64),
    ],
    ids=str,
)
def test_observations_of_any_dtype_and_shape(space: spaces.Box) -> None:
    agent = ActorCritic(space, spaces.Discrete(2))
    observations = torch.from_numpy(np.stack([space.sample() for _ in range(5)]))
    agent.inputs.normalizers[""].update(observations)
    # the same numbers as float32
    assert torch.equal(agent.value(observations), agent.value(observations.float()))
    assert agent.value(observations).shape == (5,)


def test_what_the_networks_see_is_normalized() -> None:
    agent = actor_critic(ACTIONS["discrete"])
    plain = ActorCritic(OBSERVATIONS, ACTIONS["discrete"], PolicyConfig([16, 16]), NormalizeConfig(observations=False))
    plain.load_state_dict(agent.state_dict(), strict=False)
    observations = observe()
    assert not plain.inputs.normalizers
    torch.testing.assert_close(agent.value(observations), plain.value(agent.inputs.normalizers[""](observations)))
    assert not torch.allclose(agent.value(observations), plain.value(observations))


# ---------------------------------------------------------------- gradients


def reached(agent: ActorCritic, loss: Tensor) -> set[str]:
    """Names of the parameters whose gradient under the loss is not zero."""
    agent.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, p in agent.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def losses(agent: ActorCritic) -> tuple[Tensor, Tensor]:
    """Policy (with entropy) and critic loss of a random batch."""
    observations = observe()
    evaluation = agent.evaluate(transitions(observations, act(agent, observations)))
    advantages = torch.randn(BATCH)
    policy_loss = -(evaluation.log_probs * advantages).mean() - 0.1 * evaluation.entropies.mean()
    return policy_loss, (evaluation.values - 1.0).square().mean()


@pytest.mark.parametrize("name", ["discrete", "offset discrete", "box", "matrix box"])
def test_separate_networks_get_separate_gradients(name: str) -> None:
    agent = actor_critic(ACTIONS[name], gain=100.0)
    names = {name for name, _ in agent.named_parameters()}
    critic = {name for name in names if name.startswith("network.critic_")}
    policy_loss, _ = losses(agent)
    assert reached(agent, policy_loss) == names - critic
    _, critic_loss = losses(agent)
    assert reached(agent, critic_loss) == critic
    # 2 trunks x 2 layers, 2 outputs, each with weight and bias; a Gaussian head adds its log_std
    assert len(names) == 12 + hasattr(agent.head, "log_std") and len(critic) == 6


CRITIC_OUTPUT = {"network.critic_output.weight", "network.critic_output.bias"}


@pytest.mark.parametrize("name", ["discrete", "matrix box"])
def test_a_shared_trunk_is_one_object_reached_by_both_losses(name: str) -> None:
    agent = actor_critic(ACTIONS[name], gain=100.0, shared_trunk=True)
    assert agent.network.critic_trunk is agent.network.actor_trunk
    names = {name for name, _ in agent.named_parameters()}
    trunk = {name for name in names if "_trunk" in name}
    assert len(trunk) == 4
    policy_loss, _ = losses(agent)
    assert reached(agent, policy_loss) == names - CRITIC_OUTPUT
    _, critic_loss = losses(agent)
    assert reached(agent, critic_loss) == trunk | CRITIC_OUTPUT


def test_a_shared_trunk_evaluated_once_or_twice_gives_the_same_gradients() -> None:
    agent, observations = actor_critic(ACTIONS["box"], shared_trunk=True), observe()
    actions = act(agent, observations)
    together = agent.evaluate(transitions(observations, actions))
    once = torch.autograd.grad(together.log_probs.sum() + together.values.sum(), list(agent.parameters()))
    log_probs = agent.head.log_prob(agent.distribution(observations), actions)
    twice = torch.autograd.grad(log_probs.sum() + agent.value(observations).sum(), list(agent.parameters()))
    torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-5)


def test_statistics_are_no_parameters() -> None:
    agent = actor_critic(ACTIONS["box"])
    assert not any("normalizer" in name or "scaler" in name for name, _ in agent.named_parameters())
    assert {"inputs.parts.0.mean", "reward_scaler.variance"} <= agent.state_dict().keys()


# ---------------------------------------------------------------- the first policy


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu", "gelu"])
def test_the_initial_policy_is_nearly_uniform(activation: str) -> None:
    agent = ActorCritic(OBSERVATIONS, spaces.Discrete(4), PolicyConfig(activation=activation))
    uniform = torch.zeros(BATCH, 4)
    distribution = agent.distribution(torch.randn(BATCH, 3))
    # logits of .01 x features, |features| <= 8 or so: KL of a few (.08)^2 / 2
    assert agent.head.kl(uniform, distribution).max() < 0.01 and not torch.equal(distribution, uniform)


@pytest.mark.parametrize("log_std", [0.0, -1.0])
def test_the_initial_gaussian_is_centred_with_the_standard_deviation_asked_for(log_std: float) -> None:
    agent = ActorCritic(OBSERVATIONS, ACTIONS["matrix box"], PolicyConfig(log_std_init=log_std))
    distribution = agent.distribution(torch.randn(BATCH, 3))
    reference = torch.tensor([0.0] * 4 + [log_std] * 4).expand(BATCH, -1)
    torch.testing.assert_close(distribution, reference, rtol=0, atol=0.15)
    assert torch.equal(distribution[:, 4:], reference[:, 4:])


def test_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in ActorCritic(OBSERVATIONS, ACTIONS["box"]).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


# ---------------------------------------------------------------- prediction


def predict(agent: ActorCritic, observations: torch.Tensor, deterministic: bool = True, generator: Any = None) -> Any:
    """Return the actions of a policy without memory."""
    actions, memory = agent.predict(observations, deterministic=deterministic, generator=generator)
    assert memory is None
    return actions


@pytest.mark.parametrize("deterministic", [True, False], ids=["mode", "sample"])
@every_action_space
def test_predicted_actions_are_legal(space: Space, deterministic: bool) -> None:
    # wide outputs, so that clipping is needed
    agent = actor_critic(space, gain=3000.0, log_std_init=2.0)
    actions = predict(agent, observe(200), deterministic, torch.Generator().manual_seed(0))
    assert actions.shape == (200, *(space.shape or ()))
    illegal = [action for action in actions.numpy() if not space.contains(action)]
    assert not illegal, f"{len(illegal)} of 200, such as {illegal[0]!r}"


@some_action_spaces
def test_the_mode_repeats_and_samples_differ(space: Space) -> None:
    agent, observations = actor_critic(space), observe(1).expand(10, -1)
    modes = [tuple(predict(agent, observations, True).flatten().tolist()) for _ in range(10)]
    samples = [tuple(predict(agent, observations, False).flatten().tolist()) for _ in range(10)]
    assert len(set(modes)) == 1 and len(set(samples)) > 1
    # and within a batch of one observation
    rows = predict(agent, observations, False, torch.Generator().manual_seed(0)).reshape(10, -1)
    assert len({tuple(row) for row in predict(agent, observations).reshape(10, -1).tolist()}) == 1
    assert len({tuple(row) for row in rows.tolist()}) > 1


@some_action_spaces
def test_samples_follow_the_generator_and_leave_the_global_one_alone(space: Space) -> None:
    agent, observations = actor_critic(space), observe()
    state = torch.get_rng_state()
    first, again, other = (predict(agent, observations, False, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    predict(agent, observations, False)
    predict(agent, observations, True)
    assert torch.equal(torch.get_rng_state(), state)


@some_action_spaces
def test_prediction_is_acting_in_the_environments_units(space: Space) -> None:
    agent, observations = actor_critic(space, gain=100.0), observe()
    expected = agent.head.to_env(act(agent, observations, seed=3))
    actions = predict(agent, observations, False, torch.Generator().manual_seed(3))
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(
        predict(agent, observations), agent.head.to_env(agent.head.mode(agent.distribution(observations)))
    )


def test_prediction_builds_no_graph_and_changes_no_statistics() -> None:
    agent = actor_critic(ACTIONS["box"])
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    assert not predict(agent, observe()).requires_grad
    torch.testing.assert_close(dict(agent.state_dict()), before, rtol=0, atol=0)


# ---------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": spaces.Dict({"b": spaces.Text(3)})}),
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(3)),
    ],
    ids=str,
)
def test_unsupported_observation_spaces_are_named(space: Space) -> None:
    with pytest.raises(UnsupportedSpaceError) as error:
        ActorCritic(space, spaces.Discrete(2))
    ((path, leaf),) = space_leaves(space).items()
    assert f"observation space {leaf}" in str(error.value) and "env.wrappers" in str(error.value)
    assert path in str(error.value)


def test_an_unsupported_action_space_is_named() -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"Text\(1, 3"):
        ActorCritic(OBSERVATIONS, spaces.Text(3))


@pytest.mark.parametrize(
    "space",
    [
        *ACTIONS.values(),
        spaces.Box(0, 255, (3, 4, 2), np.uint8),
        spaces.Box(np.float32([0.0, -np.inf]), np.float32([np.inf, 1.0]), dtype=np.float32),
        spaces.Box(-5, 5, (2,), np.int64),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, 1], [-1, 5]]),
        spaces.MultiDiscrete([2, 3], dtype=np.int32),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 3)),
        spaces.MultiBinary([3]),
        spaces.Dict(
            [("b", spaces.Discrete(2)), ("a", spaces.Tuple((spaces.Box(0.0, 1.0, ()), spaces.MultiBinary(1))))]
        ),
    ],
    ids=str,
)
def test_spaces_survive_as_plain_data_in_a_checkpoint(space: Space, tmp_path: Any) -> None:
    torch.save(space_to_spec(space), tmp_path / "spec.pt")
    restored = space_from_spec(torch.load(tmp_path / "spec.pt", weights_only=True))
    assert restored == space and restored.dtype == space.dtype and restored.shape == space.shape
    if isinstance(space, spaces.Box):
        # equality of boxes is only approximate
        assert np.array_equal(restored.low, space.low) and np.array_equal(restored.high, space.high)
    assert space_from_spec(space) is space


def test_a_spec_does_not_alias_its_space() -> None:
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    space_to_spec(space)["low"].fill_(-9.0)
    assert space.low.tolist() == [-1.0, -1.0]


def test_unknown_spaces_and_specs_are_named() -> None:
    with pytest.raises(UnsupportedSpaceError, match="Text"):
        space_to_spec(spaces.Text(3))
    with pytest.raises(UnsupportedSpaceError, match="'Text'"):
        space_from_spec({"kind": "Text"})
