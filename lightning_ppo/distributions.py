"""One action head per action space, in plain tensor arithmetic.

A head turns the output of the policy network into the parameters of a distribution, one tensor (B, P), and gives
samples, log-probabilities, entropies and exact KL divergences of it. Sampling takes its noise as an argument, so that
the noise of a whole rollout is drawn at once and a step of acting stays cheap.
"""

import math
from abc import ABC, abstractmethod

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.errors import UnsupportedSpaceError

_LOG_2PI = math.log(2.0 * math.pi)


class ActionHead(nn.Module, ABC):
    """What a policy needs of an action distribution.

    Attributes:
        num_outputs: Width of the policy network's last layer.
        num_parameters: P, numbers that describe one distribution.
        num_noise: Random numbers that one sample takes.
        action_shape: Shape of one action as the policy stores it.
        action_dtype: Its dtype.
    """

    num_outputs: int
    num_parameters: int
    num_noise: int
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype

    @abstractmethod
    def parameters_of(self, outputs: Tensor) -> Tensor:
        """Return the distribution parameters (B, P) of network outputs (B, num_outputs)."""

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the noise (*shape, num_noise) for samples of that shape, on the generator's device."""

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions (B, *action_shape) of parameters (B, P) and noise (B, num_noise)."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions (B, *action_shape)."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log-probabilities (B,) of actions (B, *action_shape)."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Return entropies (B,) in nats."""

    @abstractmethod
    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return KL(parameters || other) (B,) in nats."""

    @abstractmethod
    def to_env(self, actions: Tensor) -> Tensor:
        """Return the actions (B, *space.shape) that the environment is given."""


class CategoricalHead(ActionHead):
    """A categorical distribution over a Discrete space; its parameters are the logits (B, K)."""

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.num_outputs = self.num_parameters = self.num_noise = int(space.n)
        self.start = int(space.start)
        self.action_shape = ()
        self.action_dtype = torch.int64

    def parameters_of(self, outputs: Tensor) -> Tensor:
        """Return the outputs as they are: logits."""
        return outputs

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise: argmax(logits + noise) is a sample (Gumbel 1954)."""
        exponential = torch.empty(*shape, self.num_noise, device=generator.device).exponential_(generator=generator)
        return exponential.log_().neg_()

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions (B,) in 0..K-1."""
        return (parameters + noise).argmax(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions (B,)."""
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log-probabilities (B,) of actions (B,)."""
        return parameters.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return -sum p log p, (B,)."""
        log_probs = parameters.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return sum p (log p - log q), (B,)."""
        log_p, log_q = parameters.log_softmax(-1), other.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def to_env(self, actions: Tensor) -> Tensor:
        """Return the actions shifted to the space's first element."""
        return actions + self.start if self.start else actions


class GaussianHead(ActionHead):
    """A diagonal Gaussian over a Box whose standard deviation does not depend on the state.

    The policy acts in units in which a bounded dimension spans [-1, 1]; an unbounded one is left as it is. What the
    environment gets is clipped to its bounds, what is stored and scored is the sample. Parameters (B, 2A) are the
    means and the log standard deviations.
    """

    log_std: nn.Parameter
    center: Tensor
    half_range: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.space_shape = space.shape
        self.num_outputs = self.num_noise = int(np.prod(space.shape))
        self.num_parameters = 2 * self.num_outputs
        self.action_shape = (self.num_outputs,)
        self.action_dtype = torch.float32
        self.log_std = nn.Parameter(torch.full((self.num_outputs,), float(log_std_init)))
        low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
        bounded = np.isfinite(low) & np.isfinite(high)
        center = np.where(bounded, (np.where(bounded, high, 0.0) + np.where(bounded, low, 0.0)) / 2.0, 0.0)
        half_range = np.where(bounded, (np.where(bounded, high, 1.0) - np.where(bounded, low, -1.0)) / 2.0, 1.0)
        self.space_dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        for name, value in (("center", center), ("half_range", half_range)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32), persistent=False)
        for name, value in (("low", low), ("high", high)):
            self.register_buffer(name, torch.as_tensor(value, dtype=self.space_dtype), persistent=False)
        self.identity = bool(np.all(center == 0.0) and np.all(half_range == 1.0))

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.chunk(2, -1)
        return mean, log_std

    def parameters_of(self, outputs: Tensor) -> Tensor:
        """Return means and log standard deviations, (B, 2A)."""
        return torch.cat((outputs, self.log_std.expand_as(outputs)), -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal noise."""
        return torch.empty(*shape, self.num_noise, device=generator.device).normal_(generator=generator)

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

    def to_env(self, actions: Tensor) -> Tensor:
        """Return actions (B, *space.shape) in the space's own units, clipped to its bounds."""
        if not self.identity:
            actions = torch.addcmul(self.center, actions, self.half_range)
        return torch.clamp(actions.to(self.space_dtype), self.low, self.high).reshape(-1, *self.space_shape)


def make_action_head(space: gymnasium.Space, log_std_init: float = 0.0) -> ActionHead:
    """Return the action head of a space.

    Raises:
        UnsupportedSpaceError: If no head handles the space.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, log_std_init)
    raise UnsupportedSpaceError(f"action space {space} is not supported; supported are Discrete and floating-point Box")
