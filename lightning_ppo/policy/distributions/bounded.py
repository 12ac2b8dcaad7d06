"""Distributions of Box actions that stay within the bounds by themselves."""

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import softplus

from lightning_ppo.policy.distributions.continuous import LOG_2, BoxHead, GaussianHead

BETA_ATTEMPTS = 8
"""Attempts of rejection sampling; one is accepted with a probability above 0.95 (Marsaglia and Tsang 2000)."""


class TanhGaussianHead(GaussianHead):
    """A diagonal Gaussian squashed into the bounds by tanh (Haarnoja et al. 2018, "Soft Actor-Critic", appendix C).

    Actions are stored before squashing, where their density is exact; log-probabilities are those of the squashed
    actions. The mode is that of the Gaussian.
    """

    nodes: Tensor
    quadrature: Tensor

    def __init__(
        self, space: spaces.Box, log_std_init: float = 0.0, log_std_bounds: Sequence[float] | None = None
    ) -> None:
        super().__init__(space, log_std_init, log_std_bounds)
        self._require_bounds("tanh_gaussian")
        # the trapezoidal rule for expectations over a standard normal, which converges geometrically (Trefethen and
        # Weideman 2014); Gauss-Hermite nodes lie too far apart for wide Gaussians, whose log slope has a kink
        nodes = np.linspace(-5.5, 5.5, 48)
        weights = np.exp(-0.5 * nodes**2)
        for name, value in (("nodes", nodes), ("quadrature", weights / weights.sum())):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32), persistent=False)

    @staticmethod
    def _log_slope(actions: Tensor) -> Tensor:
        """Return log(1 - tanh(u)^2) without cancellation."""
        return 2.0 * (LOG_2 - actions - softplus(-2.0 * actions))

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log-densities (B,) of tanh(u) for unsquashed actions u (B, A)."""
        return super().log_prob(parameters, actions) - self._log_slope(actions).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the entropy (B,) of the squashed actions: that of the Gaussian plus the mean log slope of tanh."""
        mean, log_std = self._split(parameters)
        points = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * self.nodes
        return super().entropy(parameters) + (self._log_slope(points) * self.quadrature).sum((-2, -1))

    def to_env(self, actions: Tensor) -> Tensor:
        """Return squashed actions (B, *space.shape) in the space's own units."""
        return super().to_env(actions.tanh())


class BetaHead(BoxHead):
    """Independent Beta distributions within the bounds (Chou et al. 2017, "Improving Stochastic Policy Gradients ...").

    Parameters (B, 2A) are alpha and beta, both above 1, so that there is one mode.
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space)
        self._require_bounds("beta")
        self.num_outputs = self.num_parameters = 2 * self.size
        self.num_noise = self.size * 2 * BETA_ATTEMPTS * 2

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return 1 + softplus of the outputs, (B, 2A)."""
        return 1.0 + softplus(outputs)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw what rejection sampling takes: normals and logarithms of uniforms."""
        size = (*shape, self.num_noise // 2)
        normal = torch.empty(size, device=generator.device).normal_(generator=generator)
        exponential = torch.empty(size, device=generator.device).exponential_(generator=generator)
        return torch.cat((normal, -exponential), -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions (B, A) in [-1, 1]: x / (x + y) of two gamma variates (Marsaglia and Tsang 2000)."""
        normal, log_uniform = noise.unflatten(-1, (2, 2 * self.size, BETA_ATTEMPTS)).unbind(-3)
        d = parameters.unsqueeze(-1) - 1.0 / 3.0
        v = (1.0 + normal * (9.0 * d).rsqrt()) ** 3
        log_v = v.clamp(min=1e-30).log()
        accepted = (v > 0.0) & (log_uniform < 0.5 * normal.square() + d * (1.0 - v + log_v))
        first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
        chosen = torch.where(accepted.any(-1, keepdim=True), v.gather(-1, first), 1.0)
        x, y = (d * chosen).squeeze(-1).chunk(2, -1)
        return self._inside(2.0 * x / (x + y) - 1.0)

    @staticmethod
    def _inside(actions: Tensor) -> Tensor:
        """Keep actions off the bounds, where a density may be 0."""
        return actions.clamp(-1.0 + 1e-6, 1.0 - 1e-6)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions, (B, A); the centre where all are as probable."""
        above = parameters - 1.0
        alpha, beta = above.clamp(min=1e-30).chunk(2, -1)
        return self._inside((alpha - beta) / (alpha + beta))

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over dimensions of log-densities on [-1, 1], (B,)."""
        alpha, beta = _in_double(parameters)
        x = 0.5 * (actions.double() + 1.0)
        log_density = (alpha - 1.0) * x.log() + (beta - 1.0) * torch.log1p(-x) - _log_beta(alpha, beta)
        return (log_density - LOG_2).sum(-1).to(parameters.dtype)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the sum over dimensions of entropies on [-1, 1], (B,)."""
        alpha, beta = _in_double(parameters)
        total = alpha + beta
        inner = (alpha - 1.0) * alpha.digamma() + (beta - 1.0) * beta.digamma() - (total - 2.0) * total.digamma()
        return (_log_beta(alpha, beta) - inner + LOG_2).sum(-1).to(parameters.dtype)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the sum over dimensions of KL divergences, (B,)."""
        (alpha, beta), (other_alpha, other_beta) = _in_double(parameters), _in_double(other)
        total = alpha + beta
        divergences = (
            _log_beta(other_alpha, other_beta)
            - _log_beta(alpha, beta)
            + (alpha - other_alpha) * alpha.digamma()
            + (beta - other_beta) * beta.digamma()
            + (other_alpha - alpha + other_beta - beta) * total.digamma()
        )
        return divergences.sum(-1).to(parameters.dtype)


def _in_double(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and beta in float64: in float32 the large terms of a narrow distribution do not cancel."""
    alpha, beta = parameters.double().chunk(2, -1)
    return alpha, beta


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()
