"""What a handful of seeds says: a mean that one run cannot carry, and how far to trust it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def interquartile_mean(scores: Any) -> Any:
    """Return the mean of the middle half along the last axis.

    Robust like the median, but with less variance (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
    the Statistical Precipice", section 4.3).
    """
    ordered = np.sort(np.asarray(scores, dtype=float), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    values: Sequence[float], statistic: Callable[[Any], Any], samples: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of independent runs.

    Args:
        values: One per run, (K,).
        statistic: Reduces the last axis.
        samples: Bootstrap draws.
    """
    drawn = np.random.default_rng(0).choice(np.asarray(values), (samples, len(values)))
    low, high = np.percentile(statistic(drawn), [2.5, 97.5])
    return float(low), float(high)


def over_seeds(values: Sequence[float]) -> str:
    """Return mean, interquartile mean with its 95 % interval, and the worst of the results of several seeds (K,)."""
    middle, interval = float(interquartile_mean(values)), bootstrap_interval(values, interquartile_mean)
    return (
        f"mean {np.mean(values):,.1f}, interquartile mean {middle:,.1f} "
        f"(95 % interval {interval[0]:,.1f} to {interval[1]:,.1f}), worst {min(values):,.1f} of {len(values)}"
    )
