"""What a policy needs of an action distribution; one of your own derives from `ActionHead` or one of its classes."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn


class ActionHead(nn.Module, ABC):
    """Turns outputs of the policy network into a distribution over one action space.

    A distribution is one tensor of parameters (B, P), an action one tensor (B, *action_shape). Sampling takes its noise
    as an argument, so that the noise of a whole rollout is drawn at once and a step of acting stays cheap.

    The constructor takes the space and, by these names where it has such parameters, the setting `log_std_init` and the
    number of the policy's last features, `num_features`. All other parameters are those of `init_args`.

    Attributes:
        handles: The kinds of spaces it is for. Without Dict and Tuple among them, their parts have a head each.
        num_outputs: Outputs of the policy network's last layer.
        num_features: Features before that layer, appended to its outputs; 0 for heads that need none.
        num_parameters: P, numbers that describe one distribution.
        num_noise: Random numbers that one sample takes.
        num_choices: M, choices that an action mask allows or forbids; 0 where there is nothing to forbid.
        action_shape: Shape of one action as the policy stores it.
    """

    handles: ClassVar[tuple[type[gymnasium.Space], ...]] = (spaces.Box,)
    num_outputs: int
    num_features = 0
    num_parameters: int
    num_noise: int
    num_choices = 0
    action_shape: tuple[int, ...]

    @property
    @abstractmethod
    def action_dtype(self) -> torch.dtype:
        """Dtype of an action as the policy stores it."""

    @abstractmethod
    def parameters_of(self, outputs: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Return the distribution parameters (B, P) of outputs (B, num_outputs + num_features).

        Args:
            outputs: What the policy network says.
            action_masks: (B, M) bool, False for choices whose probability is 0; None allows all.
        """

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the noise (*shape, num_noise) for samples of shape (B,) or (T, N), on the generator's device.

        Steps of one rollout may share noise, samples of shape (B,) do not.
        """

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
    def to_env(self, actions: Tensor) -> Any:
        """Return what the environment is given, tensors (B, *space.shape) in the structure of the action space."""

    def shrink(self, amount: float) -> None:
        """Lower the log standard deviations of Gaussian actions by `amount`, in place; others stay as they are."""

    def set_noise_color(self, exponent: float) -> None:
        """Set how the noise of Gaussian actions is correlated over the steps of a rollout; that of others stays."""
