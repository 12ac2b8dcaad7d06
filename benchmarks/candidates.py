"""What is tried without being part of the package, by class path: objectives and networks of docs/defaults.md.

`python benchmarks/learning.py run spo configs/hopper.yaml objective=benchmarks.candidates.SimplePolicy` tries one.
"""

import math
from collections.abc import Mapping

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.policy.layers import orthogonal_
from lightning_ppo.update.policy_objectives import PolicyObjective, PolicyTerms


class SimplePolicy(PolicyObjective):
    """r A - |A| (r - 1)^2 / (2 epsilon), which has its maximum where clipping begins.

    Xie et al. 2025, "Simple Policy Optimization", arXiv:2401.16025. Epsilon is the clip range.
    """

    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of each transition, (B,)."""
        ratios = terms.log_ratios.clamp(max=80.0).exp()
        penalty = terms.advantages.abs() * (ratios - 1.0).square() / (2.0 * coefficients["clip_range"])
        return penalty - ratios * terms.advantages


class ResidualBlock(nn.Module):
    """x + W2 relu(W1 LayerNorm(x)) (Lee et al. 2025, "SimBa", arXiv:2410.09754)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = orthogonal_(nn.Linear(width, hidden), math.sqrt(2.0))
        self.outer = orthogonal_(nn.Linear(hidden, width), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width)."""
        return x + self.outer(torch.relu(self.inner(self.norm(x))))


class ResidualNetworks(nn.Module):
    """An actor and a critic of residual blocks, for observations that are vectors.

    Args:
        observation_space: A Box.
        num_outputs: Of the actor.
        width: Of the actor's and the critic's residual stream.
        blocks: In each.
        expansion: Hidden units of a block in units of its width.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        num_outputs: int,
        width: int = 64,
        blocks: int = 2,
        expansion: int = 1,
    ) -> None:
        super().__init__()
        inputs = int(np.prod(observation_space.shape))
        self.actor, self.critic = (
            nn.Sequential(
                orthogonal_(nn.Linear(inputs, width), 1.0),
                *(ResidualBlock(width, expansion * width) for _ in range(blocks)),
                nn.LayerNorm(width),
                orthogonal_(nn.Linear(width, outputs), gain),
            )
            for outputs, gain in ((num_outputs, 0.01), (1, 1.0))
        )

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (B, num_outputs) and values (B,)."""
        return self.actor(inputs), self.critic(inputs).squeeze(-1)
