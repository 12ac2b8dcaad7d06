"""Discounted sums by a parallel scan instead of a loop over time steps."""

import torch
from torch import Tensor


def sums_of_the_future(terms: Tensor, decays: Tensor) -> Tensor:
    """Return A_t = x_t + c_t A_{t+1} of terms x and decays c, each (T, N), in log2(T) rounds.

    A parallel scan (Hillis and Steele 1986): after k rounds A_t holds the terms t..t+2^k-1 of its sum.
    """
    reach = 1
    while reach < len(terms):
        # selected, not only multiplied by 0: what follows an episode's end may be NaN
        further = torch.where(decays[:-reach] > 0, terms[reach:] * decays[:-reach], 0.0)
        terms = torch.cat((terms[:-reach] + further, terms[-reach:]))
        decays = torch.cat((decays[:-reach] * decays[reach:], torch.zeros_like(decays[-reach:])))
        reach *= 2
    return terms
