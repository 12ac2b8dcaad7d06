"""Where the steps of a rollout are kept while it is collected: on the host, or on the policy's device."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_ppo.envs.stepper import Stepper
from lightning_ppo.rollout.shapes import Observations


class Steps(NamedTuple):
    """T steps of N environments; the fields are those of `Rollout`.

    Rewards (float64 where NumPy gave them), ends and `valid` are where the environment is, the rest is where the policy
    is.
    """

    observations: Observations
    boundary_observations: Observations
    boundary_rows: Tensor
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor
    learn_rewards: Tensor
    """The rewards to learn from, if the environment separates them from the score."""
    learn_terminations: Tensor
    valid: Tensor
    starts: Tensor
    action_masks: Tensor | None
    infos: dict[str, Tensor]
    """What is logged, each (T, N), by name."""
    shared: frozenset[str]
    """Names of infos that are one number for all environments."""
    successes: Tensor | None
    """(T, N), whether episodes that ended have reached their goals, NaN where nobody says; None if nobody does."""


class Storage(ABC):
    """Takes in a rollout step by step: what is seen before each action, and what came of it.

    Args:
        stepper: What is stepped.
        num_steps: T.
        device: The policy's.
        dtype: The policy's; float64 is stored as that.
    """

    def __init__(self, stepper: Stepper, num_steps: int, device: torch.device, dtype: torch.dtype) -> None:
        self.stepper, self.device, self.dtype = stepper, device, dtype
        self.num_steps, self.num_envs = num_steps, stepper.env.num_envs
        self.first_step = stepper.num_steps
        """Steps made before this rollout, for error messages."""

    @abstractmethod
    def see(self, step: int) -> tuple[Any, Any, Any]:
        """Keep what the policy sees at a step, and return it as an actor takes it: observations, starts, masks."""

    @abstractmethod
    def keep(self, step: int, rewards: Any, terminations: Any, truncations: Any) -> None:
        """Keep what came of a step."""

    @abstractmethod
    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""

    def _told(self, infos: Tensor) -> tuple[dict[str, Tensor], frozenset[str]]:
        """Return infos (T, K, N) by name, and which of them are shared; those of filler rows stay."""
        reader = self.stepper.infos
        return dict(zip(reader.names or (), infos.unbind(1), strict=False)), frozenset(reader.shared)

    @abstractmethod
    def finish(self) -> Steps:
        """Return everything.

        Raises:
            EnvironmentFault: If a NaN or an infinity is among it.
        """
