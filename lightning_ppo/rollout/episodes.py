"""Returns and lengths of episodes that span rollouts."""

import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.support.errors import EnvironmentFault


class EpisodeRecorder:
    """Returns and lengths of episodes that span rollouts; filler rows count for neither.

    An episode that ends in a filler row was broken off when its environment was replaced; it is not reported.

    Attributes:
        returns: (N,) float64, sums of the rewards of the episodes in progress.
        lengths: (N,) int64, their steps.
        skips: (N,) bool, the episode in progress will not be reported.

    Args:
        num_envs: N.
        skip_first: Do not report the first episode of each environment unless it ended by itself; else it may have been
            cut short.
    """

    def __init__(self, num_envs: int, skip_first: bool = False) -> None:
        self.skip_first = skip_first
        self.skips = torch.full((num_envs,), skip_first)
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.lengths = torch.zeros(num_envs, dtype=torch.int64)

    def add(self, rewards: Tensor, ended: Tensor, valid: Tensor, terminated: Tensor | bool = False) -> Episodes:
        """Add T steps, each argument (T, N), and return the episodes that ended in them, in order of time.

        Everything is computed where the arguments are; only the result goes to the CPU, at once.

        Args:
            rewards: Of each step.
            ended: Whether the step ended an episode.
            valid: Whether the row is a step.
            terminated: Whether the episode ended by itself, not cut off.

        Raises:
            EnvironmentFault: If a return is too large to be reported.
        """
        device = rewards.device
        skips, returns, lengths = (x.to(device) for x in (self.skips, self.returns, self.lengths))
        sums = torch.cat((returns[None], torch.where(valid, rewards, 0.0).double())).cumsum(0)[1:]
        counts = torch.cat((lengths[None], valid.long())).cumsum(0)[1:]
        # the row of the latest end up to each row, and before it; -1 where there is none
        rows = torch.arange(len(rewards), device=device).unsqueeze(1)
        latest = torch.where(ended, rows, -1).cummax(0).values
        before = torch.cat((torch.full_like(latest[:1], -1), latest[:-1]))

        def at(values: Tensor, row: Tensor, otherwise: Tensor | float) -> Tensor:
            return torch.where(row >= 0, values.gather(0, row.clamp(min=0)), otherwise)

        # after a filler row it is a new copy whose first episode begins
        begins_anew = ~valid & self.skip_first
        reported = ended & valid & (~at(begins_anew, before, skips) | terminated)
        env_returns, env_lengths = sums - at(sums, before, 0.0), counts - at(counts, before, 0)
        last = latest[-1:]
        self.returns, self.lengths = (sums[-1:] - at(sums, last, 0.0))[0], (counts[-1:] - at(counts, last, 0))[0]
        self.skips = at(begins_anew, last, skips)[0]
        found = torch.stack((env_returns[reported], env_lengths[reported].double())).cpu()
        check_returns(found[0])
        return Episodes(found[0], found[1].long())

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the records of the next rollout depend on."""
        return {f"episode_{name}": getattr(self, name).cpu().clone() for name in ("returns", "lengths", "skips")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        for name in ("returns", "lengths", "skips"):
            setattr(self, name, state[f"episode_{name}"].clone())


def check_returns(returns: Tensor) -> None:
    """Raise EnvironmentFault if a return is not finite in float32, in which results are reported."""
    finite = returns.float().isfinite()
    if not finite.all():
        raise EnvironmentFault(
            f"an episode has the return {float(returns[~finite][0]):g}, which is too large to be learnt from or "
            "reported; scale the rewards, or bound the actions that they depend on"
        )
