"""Distributions over Box spaces.

The policy acts in units in which a bounded dimension spans [-1, 1]; an unbounded one is left as it is. Densities are
those of actions in these units.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.distributions.base import ActionHead
from lightning_ppo.policy.distributions.noise import colored_noise
from lightning_ppo.support.errors import UnsupportedSpaceError
from lightning_ppo.support.spaces import finite_bounds

_LOG_2PI = math.log(2.0 * math.pi)
LOG_2 = math.log(2.0)
LOG_STD_BOUNDS = (-20.0, 2.0)
"""Bounds of a log standard deviation that the network gives (as in Haarnoja et al. 2018, "Soft Actor-Critic")."""


class BoxHead(ActionHead):
    """Base of the distributions over a Box: its units and bounds."""

    center: Tensor
    half_range: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.space_shape = space.shape
        self.size = int(np.prod(space.shape))
        """A, dimensions."""
        self.action_shape = (self.size,)
        low, high = (bound.reshape(-1) for bound in finite_bounds(space))
        bounded = np.isfinite(low) & np.isfinite(high)
        self.bounded = bool(bounded.all())
        center = np.where(bounded, (np.where(bounded, high, 0.0) + np.where(bounded, low, 0.0)) / 2.0, 0.0)
        half_range = np.where(bounded, (np.where(bounded, high, 1.0) - np.where(bounded, low, -1.0)) / 2.0, 1.0)
        self.space_dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        for name, value in (("center", center), ("half_range", half_range)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32), persistent=False)
        for name, value in (("low", low), ("high", high)):
            self.register_buffer(name, torch.as_tensor(value, dtype=self.space_dtype), persistent=False)
        self.identity = bool(np.all(center == 0.0) and np.all(half_range == 1.0))

    @property
    def action_dtype(self) -> torch.dtype:
        """Dtype of an action as the policy stores it."""
        return self.center.dtype

    def _require_bounds(self, name: str) -> None:
        if not self.bounded:
            raise UnsupportedSpaceError(
                f"policy.distribution: {name} needs an action space with finite bounds; use gaussian"
            )

    def to_env(self, actions: Tensor) -> Tensor:
        """Return actions (B, *space.shape) in the space's own units, clipped to its bounds."""
        if not self.identity:
            actions = torch.addcmul(self.center, actions, self.half_range)
        actions = torch.clamp(actions.to(self.space_dtype), self.low, self.high).to(self.space_dtype)
        return actions.reshape(-1, *self.space_shape)


class GaussianHead(BoxHead):
    """A diagonal Gaussian whose standard deviation does not depend on the state.

    What the environment gets is clipped to its bounds, what is stored and scored is the sample. Parameters (B, 2A) are
    the means and the log standard deviations.

    Args:
        space: The action space.
        log_std_init: Initial log standard deviation.
        log_std_bounds: Least and largest log standard deviation; None sets none.
    """

    log_std: Tensor
    noise_color: Tensor

    def __init__(
        self, space: spaces.Box, log_std_init: float = 0.0, log_std_bounds: Sequence[float] | None = None
    ) -> None:
        super().__init__(space)
        self.log_std_bounds = None if log_std_bounds is None else (log_std_bounds[0], log_std_bounds[1])
        # a tensor, so that copies in other processes get it with the weights
        self.register_buffer("noise_color", torch.zeros(()), persistent=False)
        self.num_outputs = self.num_noise = self.size
        self.num_parameters = 2 * self.size
        self._add_log_std(log_std_init)

    def _add_log_std(self, initial: float) -> None:
        self.log_std = nn.Parameter(torch.full((self.size,), float(initial)))

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Lower the log standard deviations by `amount`, in place, and bring those back that have left the bounds.

        Beyond a bound there is no gradient that would do so.
        """
        self.log_std.sub_(amount)
        if self.log_std_bounds is not None:
            self.log_std.clamp_(*self.log_std_bounds)

    @torch.no_grad()
    def set_noise_color(self, exponent: float) -> None:
        """Set the exponent of the spectrum of a rollout's noise, see `colored_noise`."""
        self.noise_color.fill_(exponent)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return parameters[..., : self.size], parameters[..., self.size : 2 * self.size]

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return means and log standard deviations, (B, 2A)."""
        log_std = self.log_std if self.log_std_bounds is None else self.log_std.clamp(*self.log_std_bounds)
        return torch.cat((outputs, log_std.expand_as(outputs)), -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal noise, which is correlated over the T steps of a shape (T, N) unless it is white."""
        white = torch.empty(*shape, self.num_noise, device=generator.device).normal_(generator=generator)
        exponent = float(self.noise_color) if len(shape) > 1 else 0.0
        return colored_noise(white, exponent) if exponent else white

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return mean + std x noise, (B, A)."""
        mean, log_std = self._split(parameters)
        return torch.addcmul(mean, log_std.exp(), noise)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the means, (B, A)."""
        return self._split(parameters)[0]

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over dimensions of Gaussian log-densities, (B,)."""
        mean, log_std = self._split(parameters)
        standardized = (actions - mean) * (-log_std).exp()
        return -0.5 * (standardized.square() + 2.0 * log_std + _LOG_2PI).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the sum over dimensions of log std + (1 + log 2 pi) / 2, (B,)."""
        return (self._split(parameters)[1] + 0.5 * (1.0 + _LOG_2PI)).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the KL divergence of two diagonal Gaussians, (B,)."""
        (mean, log_std), (other_mean, other_log_std) = self._split(parameters), self._split(other)
        ratio = (2.0 * (log_std - other_log_std)).exp()
        distance = (mean - other_mean) * (-other_log_std).exp()
        return 0.5 * (ratio + distance.square() - 1.0 - 2.0 * (log_std - other_log_std)).sum(-1)


class StateGaussianHead(GaussianHead):
    """A diagonal Gaussian whose standard deviation depends on the state.

    Outputs are means and log standard deviations, the latter relative to the buffer `log_std` (A,).
    """

    log_std_bounds: tuple[float, float]

    def __init__(
        self, space: spaces.Box, log_std_init: float = 0.0, log_std_bounds: Sequence[float] | None = None
    ) -> None:
        super().__init__(space, log_std_init, LOG_STD_BOUNDS if log_std_bounds is None else log_std_bounds)
        self.num_outputs = 2 * self.size

    def _add_log_std(self, initial: float) -> None:
        self.register_buffer("log_std", torch.full((self.size,), float(initial)))

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Lower what the log standard deviations are relative to by `amount`, in place."""
        self.log_std.sub_(amount)

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return means and log standard deviations, (B, 2A)."""
        mean, log_std = outputs.chunk(2, -1)
        return torch.cat((mean, (log_std + self.log_std).clamp(*self.log_std_bounds)), -1)


class StateDependentExplorationHead(GaussianHead):
    """Generalised state-dependent exploration, gSDE (Raffin et al. 2021, "Smooth Exploration for Robotic RL").

    The noise of an action is a random linear function of the policy's last features, drawn once per environment and
    rollout, so that exploration is smooth in time. Parameters (B, 2A + F) are means, log standard deviations and the
    features. The features get no gradient through the noise.
    """

    def __init__(self, space: spaces.Box, num_features: int, log_std_init: float = 0.0) -> None:
        self.num_features = num_features
        super().__init__(space, log_std_init)
        self.num_noise = num_features * self.size
        self.num_parameters = 2 * self.size + num_features

    def _add_log_std(self, initial: float) -> None:
        # the squares of F features of size 1 then sum up to the standard deviation asked for
        initial -= 0.5 * math.log(self.num_features)
        self.log_std = nn.Parameter(torch.full((self.num_features, self.size), float(initial)))

    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return means, log standard deviations and features, (B, 2A + F)."""
        mean, features = outputs[..., : self.size], outputs[..., self.size :].detach()
        variance = features.square() @ (2.0 * self.log_std).exp()
        return torch.cat((mean, 0.5 * (variance + 1e-6).log(), features), -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal noise (*shape, F x A), the same for all T steps of a shape (T, N)."""
        return super().noise(shape[-1:], generator).expand(*shape, self.num_noise)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return mean + features x (std x noise), (B, A)."""
        features = parameters[..., 2 * self.size :]
        directions = noise.unflatten(-1, self.log_std.shape) * self.log_std.exp()
        return self.mode(parameters) + (features.unsqueeze(-1) * directions).sum(-2)
