"""Losses and KL estimators: values, gradients, and expectations without sampling error."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.update.objectives import (
    clipped_surrogate_loss,
    explained_variance,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_log_ratios,
    outside_clip_range,
    value_loss,
    variance_sums,
    weighted_sum,
)


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    return weighted_sum(x, weights) / weights.sum()


def vector(*numbers: float, grad: bool = False) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=grad)


# ---------------------------------------------------------------- log ratios


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_log_ratios_are_new_minus_old_and_zero_without_weight(bad: float) -> None:
    new, old = vector(-1.0, bad, 2.0, bad, grad=True), vector(-1.5, 0.0, 2.5, bad)
    log_ratios = masked_log_ratios(new, old, vector(0.5, 0, 2, 0))
    # -1 + 1.5, masked, 2 - 2.5, masked; the weight selects and does not scale
    torch.testing.assert_close(log_ratios, vector(0.5, 0, -0.5, 0))
    log_ratios.exp().sum().backward()
    torch.testing.assert_close(new.grad, vector(0.5, -math.inf, -0.5, -math.inf).exp())


# ---------------------------------------------------------------- policy


@pytest.mark.parametrize("clip_range", [0.2, torch.tensor(0.2)], ids=["float", "tensor"])
def test_clipped_surrogate_at_its_four_corners(clip_range: float | Tensor) -> None:
    log_ratios = vector(0.5, -0.7, 0.5, -0.7, grad=True)
    losses = clipped_surrogate_loss(log_ratios, vector(1, 1, -1, -1), clip_range)
    # e^.5 = 1.648721, e^-.7 = .496585; loss = -min(r A, clip(r, .8, 1.2) A):
    # -min(1.648721, 1.2), -min(.496585, .8), -min(-1.648721, -1.2), -min(-.496585, -.8)
    torch.testing.assert_close(losses, vector(-1.2, -0.496585, 1.648721, 0.8), rtol=0, atol=1e-6)
    losses.sum().backward()
    # -A r where the unclipped term is the smaller one, else 0
    torch.testing.assert_close(log_ratios.grad, vector(0, -0.496585, 1.648721, 0), rtol=0, atol=1e-6)


def test_first_step_follows_the_plain_policy_gradient() -> None:
    # at ratio 1 both terms of the minimum tie; the gradient must still be the whole -A
    log_ratios, advantages = torch.zeros(3, dtype=torch.float64, requires_grad=True), vector(2, -3, 0)
    losses = clipped_surrogate_loss(log_ratios, advantages, 0.2)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), -advantages)
    torch.testing.assert_close(log_ratios.grad, -advantages)


def test_bounds_of_their_own_below_and_above() -> None:
    # low .2, high .5: ratios .7 and 1.6 are beyond both; A 1 stops at 1.5, A -1 at .8, the other corners do not clip
    log_ratios = vector(math.log(0.7), math.log(1.6), math.log(0.7), math.log(1.6), grad=True)
    losses = clipped_surrogate_loss(log_ratios, vector(1, 1, -1, -1), 0.2, 0.5)
    torch.testing.assert_close(losses, vector(-0.7, -1.5, 0.8, 1.6))
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratios)
    torch.testing.assert_close(gradient, vector(-0.7, 0, 0, 1.6))
    assert outside_clip_range(vector(*map(math.log, (0.79, 0.81, 1.49, 1.51))), 0.2, 0.5).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_a_ratio_that_no_float_holds_has_no_gradient_where_it_is_clipped() -> None:
    log_ratios = torch.tensor([100.0, -200.0], requires_grad=True)
    losses = clipped_surrogate_loss(log_ratios, torch.tensor([1.0, -1.0]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, 0.8]))
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratios)
    assert gradient.tolist() == [0.0, 0.0]


def test_an_infinite_clip_range_does_not_clip() -> None:
    log_ratios, advantages = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    losses = clipped_surrogate_loss(log_ratios, advantages, math.inf)
    torch.testing.assert_close(losses, -log_ratios.exp() * advantages)


def test_softmax_bandit_gradient() -> None:
    # logits (0, 1, 2), p = (.090031, .244728, .665241); action 1 with A = 2 on the first step:
    # d loss / d logits = -2 (onehot - p) = (.180061, -1.510543, 1.330482)
    head = make_action_head(spaces.Discrete(3))
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    log_probs = head.log_prob(logits, torch.tensor([1]))
    clipped_surrogate_loss(log_probs - log_probs.detach(), vector(2), 0.2).sum().backward()
    torch.testing.assert_close(logits.grad[0], vector(0.180061, -1.510543, 1.330482), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- value


def test_value_loss_is_half_the_squared_error() -> None:
    values = vector(0, 0, grad=True)
    losses = value_loss(values, vector(-1, 2))
    # .5 x 1^2, .5 x 2^2; gradient V - R
    torch.testing.assert_close(losses, vector(0.5, 2.0))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, vector(1, -2))


@pytest.mark.parametrize("clip_range", [0.2, torch.tensor(0.2, dtype=torch.float64)], ids=["float", "tensor"])
def test_value_clipping_takes_the_worse_of_both_errors(clip_range: float | Tensor) -> None:
    values = vector(1.0, -1.0, 1.0, 0.1, grad=True)
    losses = value_loss(values, vector(2.0, -2.0, -1.0, 1.1), torch.zeros(4, dtype=torch.float64), clip_range)
    # towards the target beyond the range: the clipped value +-.2 counts, .5 x 1.8^2 = 1.62, and pushes no further
    # away from the target: the unclipped one, .5 x 2^2 = 2 with gradient 1 - (-1) = 2
    # within the range both are .5 x 1^2 with gradient .1 - 1.1 = -1
    torch.testing.assert_close(losses, vector(1.62, 1.62, 2.0, 0.5))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, vector(0, 0, 2, -1))


def test_value_clipping_is_around_the_old_value() -> None:
    # old 5, new 6, range .5, target 8: clipped 5.5, .5 x 2.5^2 = 3.125 > .5 x 2^2
    torch.testing.assert_close(value_loss(vector(6), vector(8), vector(5), 0.5), vector(3.125))


def test_value_clipping_needs_the_old_values() -> None:
    with pytest.raises(ValueError, match="old values"):
        value_loss(vector(0), vector(1), None, 0.2)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("shapes", [((4,), (4, 1)), ((4, 1), (4,)), ((4, 1), (4, 1)), ((4,), (1,)), ((4,), ())])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: clipped_surrogate_loss(x, y, 0.2),
        value_loss,
        lambda x, y: value_loss(x, x, y, 0.2),
        lambda x, y: masked_log_ratios(x, y, x),
        lambda x, y: masked_log_ratios(x, x, y),
        weighted_sum,
        variance_sums,
    ],
    ids=["surrogate", "value", "old values", "ratios", "weights", "weighted sum", "explained variance"],
)
def test_unequal_shapes_raise_instead_of_broadcasting(
    function: Callable[[Tensor, Tensor], Tensor], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


# ---------------------------------------------------------------- KL estimators


def test_kl_estimators_of_one_log_ratio() -> None:
    # d = log new - log old: k1 = -d, k2 = d^2 / 2, k3 = e^d - 1 - d; e^.5 - 1.5 = .148721, e^-.5 - .5 = .106531
    log_ratios = vector(0.5, 0.0, -0.5)
    torch.testing.assert_close(kl_k1(log_ratios), vector(-0.5, 0, 0.5))
    torch.testing.assert_close(kl_k2(log_ratios), vector(0.125, 0, 0.125))
    torch.testing.assert_close(kl_k3(log_ratios), vector(0.148721, 0, 0.106531), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", [kl_k2, kl_k3])
def test_estimators_that_are_never_negative(estimator: Callable[[Tensor], Tensor]) -> None:
    log_ratios = torch.cat((torch.linspace(-20, 20, 401), torch.tensor([1e-8, -1e-8, 1e-4, -1e-4])))
    assert (estimator(log_ratios) >= 0).all()


def test_k3_keeps_its_precision_near_zero() -> None:
    # e^d - 1 - d = d^2 / 2 + d^3 / 6 + ...; exp(d) - 1 in float32 would be off by 6e-8 here
    assert kl_k3(torch.tensor([1e-3])).item() == pytest.approx(5.0016671e-7, rel=1e-3)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_expectation_under_a_categorical_is_the_exact_kl(estimator: Callable[[Tensor], Tensor]) -> None:
    head = make_action_head(spaces.Discrete(3))
    old, new = vector(0.1, 0.2, 0.7).log().expand(3, 3), vector(0.6, 0.3, 0.1).log().expand(3, 3)
    actions = torch.arange(3)
    # enumerating the actions leaves no sampling error; log ratios are new - old, samples come from old
    estimates = estimator(head.log_prob(new, actions) - head.log_prob(old, actions))
    expectation = weighted_mean(estimates, head.log_prob(old, actions).exp())
    torch.testing.assert_close(expectation, head.kl(old, new)[0])
    # KL(old || new) = 1.101868, the reverse would be 1.002104
    assert expectation.item() == pytest.approx(1.101868, abs=1e-6)


def gaussian_nodes(mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Actions (K, 1) and weights (K,) of Gauss-Hermite quadrature under N(mean, std)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return torch.from_numpy(mean + std * nodes).unsqueeze(1), torch.from_numpy(weights)


def gaussian(mean: float, std: float) -> Tensor:
    return vector(mean, math.log(std)).unsqueeze(0)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_expectation_under_a_gaussian_is_the_exact_kl(estimator: Callable[[Tensor], Tensor]) -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)))
    old, new = gaussian(0.3, 0.8), gaussian(0.1, 1.0)
    actions, weights = gaussian_nodes(0.3, 0.8)
    estimates = estimator(head.log_prob(new, actions) - head.log_prob(old, actions))
    expectation = weighted_mean(estimates, weights)
    torch.testing.assert_close(expectation, head.kl(old, new)[0], rtol=1e-8, atol=0)
    # -log .8 + (.64 + .04) / 2 - .5 = .063144; the reverse, log .8 + (1 + .04) / 1.28 - .5 = .089356
    assert expectation.item() == pytest.approx(0.063144, abs=1e-6)


def test_k2_is_biased_by_the_fourth_order_only() -> None:
    # N(0, 1) against N(delta, 1): d = delta x - delta^2 / 2, E d^2 / 2 = delta^2 / 2 + delta^4 / 8, KL = delta^2 / 2;
    # delta .1: .005 + .0000125
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)))
    actions, weights = gaussian_nodes(0.0, 1.0)
    log_ratios = head.log_prob(gaussian(0.1, 1.0), actions) - head.log_prob(gaussian(0.0, 1.0), actions)
    assert weighted_mean(kl_k2(log_ratios), weights).item() == pytest.approx(0.0050125, rel=1e-6)


def test_k3_has_less_variance_than_k1_on_samples() -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (2,)))
    old = torch.zeros(20_000, 4)
    new = torch.tensor([0.1, -0.1, 0.05, -0.05]).expand(20_000, 4)
    actions = head.sample(old, head.noise((20_000,), torch.Generator().manual_seed(0)))
    log_ratios = head.log_prob(new, actions) - head.log_prob(old, actions)
    k1, k3 = kl_k1(log_ratios), kl_k3(log_ratios)
    # 20,000 samples of k3 (standard deviation about .02) put the mean within .0005 of the exact KL of about .0125
    assert k3.mean().item() == pytest.approx(head.kl(old, new)[0].item(), abs=5e-4)
    assert k3.var() < 0.1 * k1.var()


def bias_and_deviation(estimator: Callable[[Tensor], Tensor], log_ratios: Tensor, probabilities: Tensor, kl: Tensor):
    """Relative to the exact KL divergence."""
    estimates, weights = estimator(log_ratios), probabilities / probabilities.sum()
    mean = weighted_sum(estimates, weights)
    deviation = weighted_sum((estimates - mean).square(), weights).sqrt()
    return ((mean - kl) / kl).item(), (deviation / kl).item()


@pytest.mark.parametrize(
    ("shift", "estimator", "bias", "deviation"),
    [
        # the two tables of Schulman's note, as it rounds them; exactly, the bias of k2 is shift^2 / 4
        (0.1, kl_k1, 0.0, 20.0),
        (0.1, kl_k2, 0.0025, 1.42),
        (0.1, kl_k3, 0.0, 1.42),
        (1.0, kl_k1, 0.0, 2.0),
        (1.0, kl_k2, 0.25, 1.73),
        (1.0, kl_k3, 0.0, 1.7),
    ],
)
def test_bias_and_deviation_under_a_gaussian_are_those_of_the_note(shift, estimator, bias, deviation) -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)))
    old, new = gaussian(0.0, 1.0), gaussian(shift, 1.0)
    actions, weights = gaussian_nodes(0.0, 1.0)
    log_ratios = head.log_prob(new, actions) - head.log_prob(old, actions)
    measured = bias_and_deviation(estimator, log_ratios, weights, head.kl(old, new)[0])
    assert measured == (pytest.approx(bias, abs=1e-6), pytest.approx(deviation, rel=0.01))


@pytest.mark.parametrize(
    ("estimator", "mean", "deviation"),
    [(kl_k1, 0.020411, 0.202733), (kl_k2, 0.020759, 0.004138), (kl_k3, 0.020411, 0.002733)],
)
def test_bias_and_deviation_under_a_categorical(estimator, mean, deviation) -> None:
    # (.5, .5) against (.6, .4): d = log 1.2, log .8 = .182322, -.223144; KL = -(.182322 - .223144) / 2 = .020411;
    # of two equally likely values, the deviation is half their distance: k1 .182322 + .223144, k2 .024897 - .016621,
    # k3 (-.2 + .223144) - (.2 - .182322)
    head = make_action_head(spaces.Discrete(2))
    old, new = vector(0.5, 0.5).log().expand(2, 2), vector(0.6, 0.4).log().expand(2, 2)
    actions, kl = torch.arange(2), head.kl(old, new)[0]
    assert kl.item() == pytest.approx(0.020411, abs=1e-6)
    log_ratios = head.log_prob(new, actions) - head.log_prob(old, actions)
    bias, relative = bias_and_deviation(estimator, log_ratios, head.log_prob(old, actions).exp(), kl)
    assert kl.item() * (1.0 + bias) == pytest.approx(mean, abs=1e-6)
    assert kl.item() * relative == pytest.approx(deviation, abs=1e-6)


# ---------------------------------------------------------------- reductions


def test_weighted_sum() -> None:
    # 1 x .5 + 2 x 0 + 3 x .25
    assert weighted_sum(vector(1, 2, 3), vector(0.5, 0, 0.25)).item() == 1.25


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 2, 3, 6), 1.0),
        # a constant offset has no variance
        ((11, 12, 13, 16), 1.0),
        ((5, 5, 5, 5), 0.0),
        # half the returns: Var(R / 2) / Var(R) = 1 / 4
        ((0.5, 1, 1.5, 3), 0.75),
        # minus the returns: Var(2 R) / Var(R) = 4
        ((-1, -2, -3, -6), -3.0),
    ],
)
def test_explained_variance(values: tuple[float, ...], expected: float) -> None:
    predicted, returns = vector(*values), vector(1, 2, 3, 6)
    assert explained_variance(variance_sums(predicted, returns).tolist()) == pytest.approx(expected, abs=1e-12)
    # sums of parts add up
    parts = variance_sums(predicted[:3], returns[:3]) + variance_sums(predicted[3:], returns[3:])
    assert explained_variance(parts.tolist()) == pytest.approx(expected, abs=1e-12)


def test_explained_variance_of_constant_returns_is_finite() -> None:
    # nothing to explain and nothing missed: 1 - 0 / 1e-8
    assert explained_variance(variance_sums(vector(3, 3), vector(2, 2)).tolist()) == 1.0
    assert math.isfinite(explained_variance(variance_sums(vector(1, 2), vector(2, 2)).tolist()))
