"""Action heads against exact values, torch.distributions, and their own samples."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from lightning_ppo.policy.distributions import ActionHead, make_action_head
from lightning_ppo.support.errors import UnsupportedSpaceError

SAMPLES = 200_000


def box(size: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (size,), np.float32)


def gaussian(means: list[float], stds: list[float]) -> Tensor:
    """Parameters (1, 2A) of a Gaussian head."""
    return torch.cat((torch.tensor(means), torch.tensor(stds).log())).double().unsqueeze(0)


def logits(*probabilities: float) -> Tensor:
    """Parameters (1, K) of a categorical head, not normalised."""
    return torch.tensor(probabilities, dtype=torch.float64).log().unsqueeze(0) + 3.0


def as_torch(head: ActionHead, parameters: Tensor) -> Distribution:
    """The same distribution in torch.distributions."""
    if head.action_shape == ():
        return Categorical(logits=parameters)
    mean, log_std = parameters.chunk(2, -1)
    return Independent(Normal(mean, log_std.exp()), 1)


def draw(head: ActionHead, parameters: Tensor, count: int = SAMPLES) -> Tensor:
    """Samples (count, ...) of one distribution (1, P)."""
    noise = head.noise((count,), torch.Generator().manual_seed(7))
    return head.sample(parameters.float().expand(count, -1), noise)


# ---------------------------------------------------------------- exact values


def test_gaussian_log_prob_is_a_sum_over_dimensions() -> None:
    head = make_action_head(box(4))
    # -4 x log(2 pi) / 2 = -4 x .9189385
    log_probs = head.log_prob(gaussian([0.0] * 4, [1.0] * 4).expand(3, -1), torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(log_probs, torch.full((3,), -3.675754, dtype=torch.float64), rtol=0, atol=1e-6)


def test_gaussian_log_prob_off_the_mean() -> None:
    # z = (3 - 1) / 2 = 1: -.5 - log 2 - .918939 = -2.112086
    log_prob = make_action_head(box(1)).log_prob(gaussian([1.0], [2.0]), torch.tensor([[3.0]]))
    assert log_prob.item() == pytest.approx(-2.112086, abs=1e-6)


def test_gaussian_entropy() -> None:
    # 3 x (log 2 + .5 + .918939) = 3 x 2.112086; the mean does not matter
    entropy = make_action_head(box(3)).entropy(gaussian([0.0, 5.0, -1.0], [2.0] * 3))
    assert entropy.shape == (1,) and entropy.item() == pytest.approx(6.336257, abs=1e-5)


@pytest.mark.parametrize(
    ("space", "p", "q", "forward", "reverse"),
    [
        # log 2 + (1 + 1) / 8 - 1/2 and -log 2 + (4 + 1) / 2 - 1/2
        (box(1), gaussian([0.0], [1.0]), gaussian([1.0], [2.0]), 0.443147, 1.306853),
        # the same twice over: a sum over dimensions
        (box(2), gaussian([0.0] * 2, [1.0] * 2), gaussian([1.0] * 2, [2.0] * 2), 0.886294, 2.613706),
        # .3 log(.3 / .65) + .7 log(.7 / .35)
        (spaces.Discrete(2), logits(0.7, 0.3), logits(0.35, 0.65), 0.253246, 0.259972),
        # .1 log(1 / 6) + .2 log(2 / 3) + .7 log 7
        (spaces.Discrete(3), logits(0.1, 0.2, 0.7), logits(0.6, 0.3, 0.1), 1.101868, 1.002104),
    ],
    ids=["gaussian", "gaussian 2", "bernoulli", "categorical"],
)
def test_kl_and_its_direction(space: spaces.Space, p: Tensor, q: Tensor, forward: float, reverse: float) -> None:
    head = make_action_head(space)
    assert head.kl(p, q).shape == (1,)
    assert head.kl(p, q).item() == pytest.approx(forward, abs=1e-6)
    assert head.kl(q, p).item() == pytest.approx(reverse, abs=1e-6)
    assert abs(head.kl(p, p).item()) <= 1e-6


def test_categorical_probabilities() -> None:
    # e^0 + e^1 + e^2 = 11.107338: 1 / 11.107338, 2.718282 / 11.107338, 7.389056 / 11.107338
    head = make_action_head(spaces.Discrete(3))
    parameters = torch.tensor([[0.0, 1.0, 2.0]]).expand(3, -1)
    probabilities = head.log_prob(parameters, torch.arange(3)).exp()
    torch.testing.assert_close(probabilities, torch.tensor([0.090031, 0.244728, 0.665241]), rtol=0, atol=1e-6)


def test_categorical_entropy() -> None:
    head = make_action_head(spaces.Discrete(4))
    # uniform: log 4; all but certain: 0
    entropies = head.entropy(torch.tensor([[5.0, 5.0, 5.0, 5.0], [100.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(entropies, torch.tensor([math.log(4.0), 0.0]))


@pytest.mark.parametrize("space", [box(1), box(3), spaces.Discrete(1), spaces.Discrete(5)], ids=str)
def test_equals_torch_distributions_on_random_parameters(space: spaces.Space) -> None:
    # a prime batch, so that a wrong axis cannot pass
    head = make_action_head(space)
    p, q = (torch.randn(31, head.num_parameters, dtype=torch.float64) for _ in range(2))
    expected, other = as_torch(head, p), as_torch(head, q)
    actions = expected.sample()
    assert actions.shape == (31, *head.action_shape)
    torch.testing.assert_close(head.log_prob(p, actions), expected.log_prob(actions))
    torch.testing.assert_close(head.entropy(p), expected.entropy())
    torch.testing.assert_close(head.kl(p, q), kl_divergence(expected, other))


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_extreme_logits_stay_finite(scale: float) -> None:
    head = make_action_head(spaces.Discrete(3))
    p = torch.tensor([[scale, 0.0, -scale]], requires_grad=True)
    q = torch.tensor([[-scale, 0.0, scale]])
    # p is all but certain of action 0, q of action 2: KL = log p(0) - log q(0) = 0 - (-2 scale)
    assert head.kl(p, q).item() == pytest.approx(2 * scale, rel=1e-5)
    (head.entropy(p) + head.log_prob(p, torch.tensor([2]))).sum().backward()
    assert torch.isfinite(p.grad).all()


# ---------------------------------------------------------------- samples

SAMPLED = {
    "gaussian": (box(3), gaussian([0.5, -1.0, 0.0], [0.5, 1.0, 2.0]), gaussian([0.0, 0.0, 1.0], [1.0, 1.5, 1.0])),
    "categorical": (spaces.Discrete(4), logits(0.1, 0.2, 0.3, 0.4), logits(0.4, 0.4, 0.1, 0.1)),
    "offset categorical": (spaces.Discrete(3, start=5), logits(0.1, 0.2, 0.7), logits(0.6, 0.3, 0.1)),
}


@pytest.mark.parametrize(("space", "p", "q"), SAMPLED.values(), ids=SAMPLED.keys())
def test_samples_agree_with_density_entropy_and_kl(space: spaces.Space, p: Tensor, q: Tensor) -> None:
    head = make_action_head(space)
    actions = draw(head, p)
    log_p = head.log_prob(p.expand(SAMPLES, -1), actions)
    log_q = head.log_prob(q.expand(SAMPLES, -1), actions)
    assert -log_p.mean().item() == pytest.approx(head.entropy(p).item(), rel=2e-2)
    assert (log_p - log_q).mean().item() == pytest.approx(head.kl(p, q).item(), rel=2e-2)


def test_sampling_frequencies() -> None:
    expected = torch.tensor([0.05, 0.15, 0.8])
    actions = draw(make_action_head(spaces.Discrete(3)), logits(*expected.tolist()))
    # the standard deviation of a frequency is at most sqrt(.8 x .2 / 200,000) = .0009
    torch.testing.assert_close(actions.bincount(minlength=3) / SAMPLES, expected, rtol=0, atol=4e-3)


def test_gaussian_samples_have_the_mean_and_standard_deviation() -> None:
    actions = draw(make_action_head(box(2)), gaussian([1.0, -2.0], [0.5, 3.0]))
    # standard errors: 3 / sqrt(200,000) = .0067 of the mean, 3 / sqrt(400,000) = .0047 of the standard deviation
    torch.testing.assert_close(actions.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.5, 3.0]), rtol=0, atol=0.02)
    # and the dimensions are independent: |correlation| within 4 / sqrt(200,000) = .009
    assert abs(torch.corrcoef(actions.t())[0, 1].item()) < 0.01


@pytest.mark.parametrize("space", [box(2), spaces.Discrete(3)], ids=str)
def test_noise_comes_from_the_generator_alone(space: spaces.Space) -> None:
    head, state = make_action_head(space), torch.get_rng_state()
    first, again, other = (head.noise((5, 4), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (5, 4, head.num_noise)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("space", [box(2), spaces.Discrete(5)], ids=str)
def test_mode_is_the_most_probable_action(space: spaces.Space) -> None:
    head = make_action_head(space)
    parameters = torch.randn(31, head.num_parameters)
    best = head.log_prob(parameters, head.mode(parameters))
    for seed in range(20):
        actions = head.sample(parameters, head.noise((31,), torch.Generator().manual_seed(seed)))
        assert (best >= head.log_prob(parameters, actions)).all()


# ---------------------------------------------------------------- parameters


def test_log_std_is_learnable() -> None:
    head = make_action_head(box(2))
    outputs = torch.zeros(3, 2, requires_grad=True)
    actions = torch.tensor([[0.0, 2.0]]).expand(3, -1)
    head.log_prob(head.parameters_of(outputs), actions).sum().backward()
    # d log p / d log std = z^2 - 1 with z = 0 and 2, d log p / d mean = z / std, from each of three rows
    torch.testing.assert_close(head.log_std.grad, torch.tensor([-3.0, 9.0]))
    torch.testing.assert_close(outputs.grad, actions)


@pytest.mark.parametrize("log_std", [0.0, -0.5, 1.0])
def test_initial_standard_deviation(log_std: float) -> None:
    head = make_action_head(box(2), log_std_init=log_std)
    parameters = head.parameters_of(torch.tensor([[0.3, -0.3]]))
    torch.testing.assert_close(parameters, torch.tensor([[0.3, -0.3, log_std, log_std]]))
    # d (log std + .5 (1 + log 2 pi)) / d log std = 1 in each dimension
    head.entropy(parameters).sum().backward()
    torch.testing.assert_close(head.log_std.grad, torch.ones(2))


@pytest.mark.parametrize("name", ["gaussian", "state_gaussian", "tanh_gaussian", "gsde"])
def test_shrinking_lowers_every_log_standard_deviation(name: str) -> None:
    head = make_action_head(box(2), name, -0.5, 3)
    outputs = torch.randn(4, head.num_outputs + head.num_features)
    outputs[:, head.num_outputs :] = outputs[:, head.num_outputs :].sign()  # far from the floor of gSDE's variance
    means, log_stds = head.parameters_of(outputs)[:, :4].chunk(2, -1)
    head.shrink(0.25)
    now = head.parameters_of(outputs)[:, :4]
    torch.testing.assert_close(now, torch.cat((means, log_stds - 0.25), -1), atol=1e-5, rtol=0.0)


def test_shrinking_reaches_the_gaussian_parts_alone() -> None:
    space = spaces.Tuple((spaces.Discrete(3), box(2)))
    head = make_action_head(space)
    outputs = torch.randn(4, head.num_outputs)
    before = head.parameters_of(outputs)
    head.shrink(0.25)
    change = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.25]).expand(4, -1)
    torch.testing.assert_close(before - head.parameters_of(outputs), change)


# ---------------------------------------------------------------- the environment's units


@pytest.mark.parametrize(
    ("low", "high", "actions", "expected"),
    [
        # centre 0, half range 2
        (-2.0, 2.0, (-1.0, 0.0, 0.5, 1.0, 3.0, -3.0), (-2.0, 0.0, 1.0, 2.0, 2.0, -2.0)),
        # already [-1, 1]: clipped only
        (-1.0, 1.0, (-0.5, 0.25, 1.5, -9.0), (-0.5, 0.25, 1.0, -1.0)),
        # centre 5, half range 5
        (0.0, 10.0, (-1.0, 0.0, 0.5, 1.0, 2.0, -2.0), (0.0, 5.0, 7.5, 10.0, 10.0, 0.0)),
        # centre -2, half range 1
        (-3.0, -1.0, (-1.0, 0.0, 1.0, 5.0), (-3.0, -2.0, -1.0, -1.0)),
        # unbounded: as it is
        (-np.inf, np.inf, (-70.0, 0.5, 70.0), (-70.0, 0.5, 70.0)),
        # bounded on one side: unscaled, and clipped there
        (0.5, np.inf, (-1.0, 0.25, 70.0), (0.5, 0.5, 70.0)),
        (-np.inf, 0.5, (-70.0, 0.25, 1.0), (-70.0, 0.25, 0.5)),
    ],
)
def test_box_actions_are_rescaled_and_clipped(
    low: float, high: float, actions: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    head = make_action_head(spaces.Box(low, high, (1,), np.float32))
    result = head.to_env(torch.tensor(actions).unsqueeze(1))
    torch.testing.assert_close(result, torch.tensor(expected).unsqueeze(1))


def test_each_dimension_has_its_own_bounds() -> None:
    bounds = np.array([[-2.0, 2.0], [0.0, 1.0], [-np.inf, np.inf]], dtype=np.float32)
    head = make_action_head(spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32))
    # .5 x 2, .5 + .5 x .5, .5
    torch.testing.assert_close(head.to_env(torch.full((2, 3), 0.5)), torch.tensor([[1.0, 0.75, 0.5]]).expand(2, -1))
    torch.testing.assert_close(head.to_env(torch.full((1, 3), 4.0)), torch.tensor([[2.0, 1.0, 4.0]]))


def test_matrix_actions_keep_their_order() -> None:
    low = -np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    space = spaces.Box(low, -low, dtype=np.float32)
    head = make_action_head(space)
    actions = head.to_env(torch.tensor([[1.0, -0.5, 0.5, -1.0], [9.0, 9.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]]))
    # 1 x 1, -.5 x 2, .5 x 3, -1 x 4
    torch.testing.assert_close(actions[0], torch.tensor([[1.0, -1.0], [1.5, -4.0]]))
    assert all(space.contains(action) for action in actions.numpy())
    log_probs = head.log_prob(head.parameters_of(torch.zeros(3, 4)), torch.zeros(3, 4))
    torch.testing.assert_close(log_probs, torch.full((3,), -3.675754))


@pytest.mark.parametrize(("start", "expected"), [(0, [0, 1, 2]), (5, [5, 6, 7]), (-1, [-1, 0, 1])])
def test_discrete_actions_are_shifted_to_the_first_element(start: int, expected: list[int]) -> None:
    space = spaces.Discrete(3, start=start)
    head = make_action_head(space)
    actions = torch.arange(3)
    given = head.to_env(actions)
    assert given.tolist() == expected and all(space.contains(action) for action in given.numpy())
    assert actions.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({}),
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(3)}),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Text(3),
    ],
    ids=str,
)
def test_unsupported_action_spaces_are_named(space: spaces.Space) -> None:
    with pytest.raises(UnsupportedSpaceError) as error:
        make_action_head(space)
    assert str(space) in str(error.value) or str(spaces.Text(3)) in str(error.value)


def test_the_noise_of_gsde_trains_no_features():
    head = make_action_head(spaces.Box(-1.0, 1.0, (2,), np.float32), "gsde", num_features=3)
    outputs = torch.randn(4, 5, requires_grad=True)
    parameters = head.parameters_of(outputs)
    log_prob = head.log_prob(parameters, torch.randn(4, 2))
    log_prob.sum().backward()
    assert outputs.grad[:, :2].abs().min() > 0.0 and head.log_std.grad.abs().min() > 0.0
    assert torch.equal(outputs.grad[:, 2:], torch.zeros(4, 3))
