"""The arithmetic of the losses: pure functions of (B,) tensors, one number per transition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = Any
"""A number or a tensor of shape ()."""

KL_COEFFICIENT_BOUNDS = (1e-6, 1e6)
"""Between which beta of the adaptive KL penalty is adapted."""


def _same_shape(*tensors: Tensor) -> None:
    if tensors[0].dim() != 1 or any(t.shape != tensors[0].shape for t in tensors):
        raise ValueError(f"expected tensors of one shape (B,), got {[tuple(t.shape) for t in tensors]}")


def masked_log_ratios(log_probs: Tensor, behavior_log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return log pi(a|s) - log pi_old(a|s), (B,), and 0 where the weight is 0.

    A row without weight may hold any values: its ratio could overflow, and 0 x inf is NaN.
    """
    _same_shape(log_probs, behavior_log_probs, weights)
    return torch.where(weights > 0, log_probs - behavior_log_probs, 0.0)


def clipped_surrogate_loss(
    log_ratios: Tensor, advantages: Tensor, clip_range: Scalar, clip_range_high: Scalar | None = None
) -> Tensor:
    """Negative clipped surrogate, L^CLIP of the PPO paper (Schulman et al. 2017, eq. 7).

    Args:
        log_ratios: (B,), log pi(a|s) - log pi_old(a|s).
        advantages: (B,).
        clip_range: Epsilon.
        clip_range_high: How far the ratio may rise above 1, if not as far as it may fall below.

    Returns:
        (B,), to be minimised.

    Raises:
        ValueError: If the shapes are not both (B,).
    """
    _same_shape(log_ratios, advantages)
    ratios = log_ratios.clamp(max=80.0).exp()  # the gradient of a ratio that no float holds would be 0 x inf
    clipped = ratios.clamp(1.0 - clip_range, 1.0 + (clip_range if clip_range_high is None else clip_range_high))
    return -torch.minimum(ratios * advantages, clipped * advantages)


def outside_clip_range(log_ratios: Tensor, clip_range: Scalar, clip_range_high: Scalar | None = None) -> Tensor:
    """Return which ratios (B,) lie below 1 - clip_range or above 1 + clip_range_high (clip_range, where it is None)."""
    distances = log_ratios.exp() - 1.0
    return (distances < -clip_range) | (distances > (clip_range if clip_range_high is None else clip_range_high))


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Negative L^PG = log pi(a|s) A (PPO paper, eq. 2), (B,); its gradient is that of the vanilla policy gradient."""
    _same_shape(log_probs, advantages)
    return -log_probs * advantages


def surrogate_loss(log_ratios: Tensor, advantages: Tensor) -> Tensor:
    """Negative L^CPI = r A, the surrogate with neither clipping nor penalty (PPO paper, eq. 6), (B,)."""
    _same_shape(log_ratios, advantages)
    return -log_ratios.exp() * advantages


def kl_penalty_loss(log_ratios: Tensor, advantages: Tensor, kl: Tensor, coefficient: Scalar) -> Tensor:
    """Negative L^KLPEN = r A - beta KL(old || new) (PPO paper, eq. 8), (B,).

    Args:
        log_ratios: (B,).
        advantages: (B,).
        kl: (B,), exact KL divergence of the old from the new action distribution in each state.
        coefficient: Beta.
    """
    _same_shape(log_ratios, advantages, kl)
    return surrogate_loss(log_ratios, advantages) + coefficient * kl


def adapted_coefficient(coefficient: float, kl: float, target: float) -> float:
    """Return the next beta of the adaptive KL penalty: halved below target / 1.5, doubled above 1.5 x target.

    PPO paper, section 4. It stays within KL_COEFFICIENT_BOUNDS, from where it can come back: without them a policy that
    does not move takes it to 0 in time, which doubling does not change.
    """
    low, high = KL_COEFFICIENT_BOUNDS
    if kl < target / 1.5:
        return max(coefficient / 2.0, min(coefficient, low))
    return min(coefficient * 2.0, max(coefficient, high)) if kl > target * 1.5 else coefficient


def value_loss(
    values: Tensor, returns: Tensor, old_values: Tensor | None = None, clip_range: Scalar | None = None
) -> Tensor:
    """Half the squared error of the value function, 0.5 (V - R)^2.

    With a clip range, the pessimistic maximum with the loss of the value clipped around the old one, as in OpenAI
    baselines.

    Args:
        values: (B,), V(s) of the current critic.
        returns: (B,), value targets.
        old_values: (B,), V(s) at collection; needed with `clip_range`.
        clip_range: How far V may move from the old value; None does not clip.

    Raises:
        ValueError: If the shapes are not all (B,), or `clip_range` is given without `old_values`.
    """
    _same_shape(values, returns)
    loss = 0.5 * (values - returns).square()
    if clip_range is None:
        return loss
    if old_values is None:
        raise ValueError("value clipping needs the old values")
    _same_shape(values, old_values)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum(loss, 0.5 * (clipped - returns).square())


def kl_k1(log_ratios: Tensor) -> Tensor:
    """Schulman's estimator k1 = -log r of KL(old || new), r = new/old, on samples of old: unbiased, high variance."""
    return -log_ratios


def kl_k2(log_ratios: Tensor) -> Tensor:
    """Schulman's estimator k2 = (log r)^2 / 2: biased, low variance."""
    return 0.5 * log_ratios.square()


def kl_k3(log_ratios: Tensor) -> Tensor:
    """Schulman's estimator k3 = (r - 1) - log r: unbiased, low variance, never negative ("Approximating KL", 2020)."""
    return torch.expm1(log_ratios) - log_ratios


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of x (B,) times weights (B,); with weights that sum to 1 it is a mean."""
    _same_shape(x, weights)
    return torch.dot(x, weights)


def variance_sums(values: Tensor, returns: Tensor) -> Tensor:
    """Return B and the four sums that `explained_variance` needs of (B,) tensors, (5,) in float64; ranks add theirs."""
    _same_shape(values, returns)
    returns, errors = returns.double(), returns.double() - values
    columns = (torch.ones_like(errors), errors, errors.square(), returns, returns.square())
    return torch.stack(columns).sum(1)


def explained_variance(sums: Sequence[float]) -> float:
    """Return 1 - Var(returns - values) / Var(returns) of `variance_sums`; 1 is perfect, 0 no better than a constant."""
    count = max(sums[0], 1e-8)
    error, squared_error, mean, square = (value / count for value in sums[1:])
    return 1.0 - (squared_error - error * error) / max(square - mean * mean, 1e-8)
