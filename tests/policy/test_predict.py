"""`predict`: takes what an environment shows, in any form; what is none of it is one line."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo import PPO
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError

F32 = np.float32
NESTED = spaces.Dict(joints=spaces.Box(-1, 1, (3,)), pair=spaces.Tuple([spaces.Discrete(4), spaces.Box(0, 1, (2, 2))]))
ACTIONS = spaces.Dict(move=spaces.Box(-1, 1, (2,)), grip=spaces.Discrete(3))
JOINTS = spaces.Box(-1, 1, (3,))


def stacked(space: gymnasium.Space, count: int) -> tuple[list[Any], Any]:
    """Return `count` observations and the batch of them, in NumPy."""
    singles = [space.sample() for _ in range(count)]

    def join(parts: Any) -> Any:
        if isinstance(parts[0], dict):
            return {key: join([part[key] for part in parts]) for key in parts[0]}
        return tuple(map(join, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else np.stack(parts)

    return singles, join(singles)


def mapped(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: mapped(function, child) for key, child in value.items()}
    return tuple(mapped(function, x) for x in value) if isinstance(value, tuple) else function(value)


@pytest.mark.parametrize("space", [JOINTS, spaces.Discrete(5, start=-2), spaces.Box(-1, 1, ()), NESTED], ids=str)
@pytest.mark.parametrize("action_space", [spaces.Discrete(3, start=7), spaces.Box(-2, 2, (2,)), ACTIONS], ids=str)
def test_actions_are_of_the_kind_of_the_observations_and_ready_for_the_environment(space, action_space):
    space.seed(1)
    agent = PPO(space, action_space)
    singles, batch = stacked(space, 4)
    expected, memory = agent.predict(mapped(lambda x: torch.from_numpy(np.asarray(x)), batch))
    assert memory is None
    found, one = agent.predict(batch)[0], agent.predict(singles[2])[0]
    listed = agent.predict(mapped(lambda x: np.asarray(x).tolist(), singles[2]))[0]
    tensor = agent.predict(mapped(lambda x: torch.from_numpy(np.asarray(x)), singles[2]))[0]
    assert action_space.contains(one) and action_space.contains(listed)
    assert action_space.contains(agent.predict(singles[0], deterministic=False)[0])
    for name in ("move", "grip") if action_space is ACTIONS else (None,):
        whole, array, single, of_list, of_tensor = (
            x if name is None else x[name] for x in (expected, found, one, listed, tensor)
        )
        assert isinstance(whole, torch.Tensor) and isinstance(of_tensor, torch.Tensor)
        assert not isinstance(array, torch.Tensor) and not isinstance(of_list, torch.Tensor)
        np.testing.assert_array_equal(whole.numpy(), array)
        for same in (single, of_list, of_tensor.numpy()):
            np.testing.assert_allclose(array[2], same, atol=1e-6)


def test_actions_are_scaled_to_the_bounds_of_the_environment():
    space = spaces.Box(np.float32([10, -3]), np.float32([20, -1]))
    agent = PPO(JOINTS, space)
    with torch.no_grad():
        agent.policy.network.actor_output.weight.zero_()
        agent.policy.network.actor_output.bias.copy_(torch.tensor([5.0, -5.0]))
    assert agent.predict(np.zeros(3))[0].tolist() == [20.0, -3.0]


@pytest.mark.parametrize("core", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_memory_goes_in_and_out_for_one_and_for_many(core, convert):
    policy = ActorCritic(JOINTS, spaces.Box(-1, 1, (1,)), PolicyConfig(core=core))
    seen = np.random.default_rng(0).uniform(-1, 1, (5, 2, 3)).astype(F32)
    starts = np.array([[True, True], [False, False], [False, True], [False, False], [True, False]])
    states = policy.initial_states(2)
    state, singles = None, [None, None]
    for step in range(5):
        expected, states = policy.step(torch.from_numpy(seen[step]), states, torch.from_numpy(starts[step]))
        actions, state = policy.predict(convert(seen[step]), state, convert(starts[step]))
        assert type(actions) is type(state) is type(convert(0.0))
        np.testing.assert_array_equal(np.asarray(actions), expected.numpy())
        np.testing.assert_array_equal(np.asarray(state), states.numpy())
        for n in range(2):
            action, singles[n] = policy.predict(convert(seen[step, n]), singles[n], bool(starts[step, n]))
            assert singles[n].shape == (policy.state_size,)
            np.testing.assert_allclose(np.asarray(action), expected[n].numpy(), atol=1e-6)
    without, _ = policy.predict(seen[-1], state)
    assert not np.array_equal(np.asarray(without), policy.predict(seen[-1])[0])


LEGAL = {
    "flat": (spaces.Discrete(3), np.int8([0, 1, 0]), 1),
    "list": (spaces.Discrete(3), [False, False, True], 2),
    "tensor": (spaces.Discrete(3, start=5), torch.tensor([True, False, False]), 5),
    "nested": (spaces.MultiDiscrete([2, 3]), (np.int8([0, 1]), np.int8([0, 0, 1])), [1, 2]),
    "laid end to end": (spaces.MultiDiscrete([2, 3]), np.array([1.0, 0.0, 0.0, 1.0, 0.0]), [0, 1]),
    "bits": (spaces.MultiBinary(2), np.int8([1, 0]), [1, 0]),
}


@pytest.mark.parametrize("kind", LEGAL)
def test_masks_are_taken_as_environments_give_them(kind):
    space, mask, expected = LEGAL[kind]
    agent = PPO(JOINTS, space)
    assert np.asarray(agent.predict(np.zeros(3), action_masks=mask)[0]).tolist() == expected
    batched = torch.stack([mask] * 2) if isinstance(mask, torch.Tensor) else mapped(lambda x: np.stack([x] * 2), mask)
    assert np.asarray(agent.predict(np.zeros((2, 3)), action_masks=batched)[0]).tolist() == [expected] * 2


WRONG = {
    "shape": (JOINTS, np.zeros(4), r"expected the shape \(B, 3\) or \(3,\), got \(4,\)"),
    "shape of a batch": (JOINTS, np.zeros((2, 4)), r"expected the shape \(B, 3\) or \(3,\), got \(2, 4\)"),
    "two batches": (JOINTS, torch.zeros(2, 2, 3), r"expected the shape .* got \(2, 2, 3\)"),
    "text": (JOINTS, "left", r"expected numbers of Box\(.*\), got 'left'"),
    "array of text": (
        JOINTS,
        np.array(["a", "b", "c"]),
        r"expected numbers of Box\(.*\), got array",
    ),
    "objects": (JOINTS, np.array([0.0, None, 1.0]), r"expected numbers of Box\(.*\), got array\(\[0.0, None, 1.0\]"),
    "ragged": (JOINTS, [[0.0], [0.0, 1.0]], r"expected numbers of Box\(.*\), got \[\[0.0\], \[0.0, 1.0\]\]"),
    "complex": (JOINTS, torch.zeros(3, dtype=torch.complex64), r"expected numbers of Box\(.*\), got tensor"),
    "dates": (JOINTS, np.array(["2020-01-01"] * 3, "M8[D]"), r"expected numbers of Box\(.*\), got array"),
    "masked": (JOINTS, np.ma.masked_array(np.zeros(3), [0, 1, 0]), r"nan, expected finite numbers of Box\("),
    "masked integers": (spaces.Discrete(3), np.ma.masked_array([0, 1], [0, 1]), r"expected numbers of Discrete\(3\)"),
    "a dict": (JOINTS, {"a": np.zeros(3)}, r"expected numbers of Box\(.*\), got {'a'"),
    "nothing": (JOINTS, None, r"expected numbers of Box\(.*\), got None"),
    "nan": (JOINTS, F32([0, np.nan, 0]), r"nan, expected finite numbers of Box\(-1.0, 1.0, \(3,\), float32\)"),
    "infinity": (spaces.Box(-np.inf, np.inf, (1,)), [[0.0], [-np.inf]], "-inf of row 1, expected finite numbers"),
    "too large": (JOINTS, torch.tensor([0.0, 1e300, 0.0], dtype=torch.float64), "inf, expected finite numbers"),
    "choice": (spaces.Discrete(3), 3, r"3, outside Discrete\(3\)"),
    "choice before the first": (
        spaces.Discrete(3, start=2),
        torch.tensor([2, 1]),
        r"1 of row 1, outside Discrete\(3",
    ),
    "half a choice": (spaces.Discrete(3), [0.0, 0.5], r"0.5 of row 1, outside Discrete\(3\)"),
    "huge": (spaces.Discrete(3), 2**70, r"expected numbers of Discrete\(3\), got 1180591620717411303424"),
    "unsigned": (spaces.Discrete(3), np.uint64([2**63 + 1]), r"9.22337e\+18 of row 0, outside Discrete\(3\)"),
    "choices": (
        spaces.MultiDiscrete([2, 3]),
        np.array([[0, 2], [2, 0]]),
        r"2 of row 1, outside MultiDiscrete",
    ),
    "bits": (spaces.MultiBinary(2), [0, -1], r"-1, outside MultiBinary\(2\)"),
    "bytes": (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 256]), r"256 as int64, which Box\(.*\) cannot hold"),
    "fractions": (
        spaces.Box(0, 255, (2,), np.uint8),
        F32([0.5, 1.0]),
        r"0.5 as float64, which Box\(.*\) cannot",
    ),
    "no dict": (NESTED, np.zeros(3), r"expected a dict with \['joints', 'pair'\], got a ndarray"),
    "half a dict": (NESTED, {"joints": np.zeros(3)}, r"expected a dict with \['joints', 'pair'\], got \['joints'\]"),
    "no tuple": (NESTED, {"joints": np.zeros(3), "pair": 1}, "expected a tuple of 2 for the entry 'pair', got a int"),
    "one of many": (
        NESTED,
        {"joints": np.zeros((2, 3)), "pair": (np.zeros(3), np.zeros((2, 2, 2)))},
        r"expected the shape \(B,\) or \(\) for the entry 'pair/0', got \(3,\)",
    ),
    "choice in a tuple": (
        NESTED,
        {"joints": np.zeros(3), "pair": (4, np.zeros((2, 2)))},
        r"4 in the entry pair/0, outside Discrete\(4\)",
    ),
    "nan in a dict": (
        NESTED,
        {"joints": np.full(3, np.nan), "pair": (0, np.zeros((2, 2)))},
        r"nan for the entry 'joints', expected finite numbers of Box\(",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_observation_is_one_line_that_names_entry_value_and_space(kind):
    space, observations, said = WRONG[kind]
    with pytest.raises(ConfigError, match=f"^observations: {said}") as caught:
        PPO(space, spaces.Discrete(2)).predict(observations)
    assert "\n" not in str(caught.value)


def test_what_lies_beyond_the_bounds_of_a_box_is_said_once_and_used(caplog):
    agent = PPO(JOINTS, spaces.Box(-1, 1, (1,)))
    inside, beyond = agent.predict(F32([1, 0, 0]))[0], agent.predict(F32([7, 0, 0]))[0]
    agent.predict(F32([8, 0, 0]))
    assert not np.array_equal(inside, beyond)
    (line,) = caplog.messages
    assert line.startswith("observations: 7, outside Box(-1.0, 1.0, (3,), float32): the agent sees it as it is")


def test_numbers_of_other_dtypes_are_those_that_the_space_declares():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    space = spaces.Box(0, 255, image.shape, np.uint8)
    agent = PPO(space, spaces.Box(-1, 1, (1,)))
    expected = agent.predict(image.astype(np.uint8))[0]
    for dtype in (np.int64, np.float32, np.float64, ">i4", ">f8"):
        np.testing.assert_array_equal(agent.predict(image.astype(dtype))[0], expected)
    view = image.astype(np.uint8)[::-1]
    view.flags.writeable = False
    np.testing.assert_array_equal(agent.predict(view)[0], agent.predict(view.copy())[0])
    agent = PPO(JOINTS, spaces.Box(-1, 1, (1,)))
    third = np.full(3, 1 / 3)
    for value in (third, list(third), torch.from_numpy(third), third.astype(np.longdouble), tuple(third)):
        assert float(agent.predict(value)[0][0]) == float(agent.predict(third.astype(F32))[0][0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"action_masks": np.ones(4, bool)}, r"action_masks: 4 entries for the 3 choices of Discrete\(3\)"),
        ({"action_masks": torch.ones(2, 3)}, r"action_masks: expected the shape \(1, 3\), got \(2, 3\)"),
        ({"action_masks": np.zeros(3)}, r"action_masks: row 0 masks every choice of an action"),
        ({"action_masks": np.float32([0.0, -1e9, -1e9])}, r"action_masks: expected 0 and 1, got -1e\+09|-1000000000"),
        ({"action_masks": torch.tensor([0.0, 0.5, 1.0])}, r"action_masks: expected True and False, got 0.5"),
        ({"state": np.zeros((1, 5))}, r"state: expected the shape \(1, \d+\), got \(1, 5\)"),
        ({"state": "before"}, r"state: expected numbers, got 'before'"),
        ({"starts": [True, False]}, r"starts: expected the shape \(1,\), got \(2,\)"),
        ({"starts": 3}, r"starts: expected True and False, got 3"),
    ],
)
def test_what_does_not_go_with_the_observations_is_one_line(given, said):
    agent = PPO(JOINTS, spaces.Discrete(3), policy={"core": "gru"})
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        agent.predict(np.zeros(3), **given)
    assert "\n" not in str(caught.value)


def test_what_a_policy_cannot_use_is_refused():
    agent = PPO(JOINTS, spaces.Box(-1, 1, (1,)))
    agent.predict(np.zeros(3), starts=True)  # an episode may start for a policy without memory, too
    with pytest.raises(ConfigError, match=r"^state: the policy has no memory"):
        agent.predict(np.zeros(3), state=np.zeros(3))
    with pytest.raises(ConfigError, match=r"^action_masks: actions in Box.* have no choices"):
        agent.predict(np.zeros(3), action_masks=[True])
    agent = PPO(JOINTS, spaces.Discrete(2))
    with pytest.raises(ConfigError, match=r"^action_masks: expected those of 3 observations"):
        agent.predict(np.zeros((3, 3)), action_masks=np.ones((4, 2)))
