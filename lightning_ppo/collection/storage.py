"""Where the steps of a rollout are kept while it is collected: on the host, or on the policy's device."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

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
    """What to learn from, where the environment told it apart from the rewards that make the score."""
    learn_terminations: Tensor
    valid: Tensor
    starts: Tensor
    action_masks: Tensor | None


class Storage(Protocol):
    """Takes in a rollout step by step; first `before` acting, then `after` the environment's step."""

    def before(self, step: int) -> tuple[Any, Any, Any]:
        """Keep what the policy sees at a step, and return it as an actor takes it: observations, starts, masks."""

    def after(self, step: int, rewards: Any, terminations: Any, truncations: Any) -> None:
        """Keep what came of a step."""

    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""

    def finish(self) -> Steps:
        """Return everything.

        Raises:
            EnvironmentFault: If a NaN or an infinity is among it.
        """
