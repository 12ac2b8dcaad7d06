"""Returns and lengths of episodes that span rollouts."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

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
        infos: (N, 2) float64 by name, the sum of what the episodes in progress have told, and the steps that told it.
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
        self.infos: dict[str, Tensor] = {}

    def add(
        self,
        rewards: Tensor,
        ended: Tensor,
        valid: Tensor,
        terminated: Tensor | bool = False,
        successes: Tensor | None = None,
        infos: Mapping[str, Tensor] | None = None,
    ) -> Episodes:
        """Add T steps, each argument (T, N), and return the episodes that ended in them, in order of time.

        Everything is computed where the arguments are; only the result goes to the CPU, at once.

        Args:
            rewards: Of each step.
            ended: Whether the step ended an episode.
            valid: Whether the row is a step.
            terminated: Whether the episode ended by itself, not cut off.
            successes: Whether the episode that ended has reached its goal, NaN where that is not told.
            infos: What is logged of each step, by name, NaN where that is not told.

        Raises:
            EnvironmentFault: If a return is too large to be reported.
        """
        device = rewards.device
        skips, returns, lengths = (x.to(device) for x in (self.skips, self.returns, self.lengths))
        sums = running_sums(torch.cat((returns[None], torch.where(valid, rewards, 0.0).double())))[1:]
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
        columns = [env_returns[reported], env_lengths[reported].double()]
        columns.append(torch.full_like(columns[0], torch.nan) if successes is None else successes[reported].double())
        for name, values in (infos or {}).items():
            told = valid & ~values.isnan()
            running = self.infos.get(name, torch.zeros(len(skips), 2, dtype=torch.float64)).to(device)
            after = []
            both = torch.where(told, values, 0.0).double(), told.double()
            for steps, begun in zip(both, running.unbind(1), strict=True):
                # what was told before belongs to the first episode alone, so that it may be unknown
                totals = running_sums(steps)
                columns.append((totals - at(totals, before, 0.0) + torch.where(before < 0, begun, 0.0))[reported])
                after.append((totals[-1:] - at(totals, last, 0.0) + torch.where(last < 0, begun, 0.0))[0])
            self.infos[name] = torch.stack(after, 1)
        found = torch.stack(columns).cpu()
        check_returns(found[0])
        info_sums: dict[str, Tensor] = {}
        info_steps: dict[str, Tensor] = {}
        for number, name in enumerate(infos or {}):
            total, count = found[3 + 2 * number], found[4 + 2 * number]
            info_sums[name], info_steps[name] = torch.where(count > 0, total, torch.nan), count
        return Episodes(found[0], found[1].long(), found[2], info_sums, info_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what the records of the next rollout depend on."""
        state = {f"episode_{name}": getattr(self, name).cpu().clone() for name in ("returns", "lengths", "skips")}
        return {**state, "episode_infos": {name: values.cpu().clone() for name, values in self.infos.items()}}

    def load_state_dict(self, state: Mapping[str, Any], names: Iterable[str] = ()) -> None:
        """Continue from a saved state.

        Args:
            state: Of a recorder.
            names: Of infos that are recorded from now on; what was told before of those that were not is unknown.
        """
        for name in ("returns", "lengths", "skips"):
            setattr(self, name, state[f"episode_{name}"].clone())
        unknown = torch.full((len(self.returns), 2), torch.nan, dtype=torch.float64)
        saved = state.get("episode_infos", {})
        self.infos = {name: saved.get(name, unknown).clone() for name in names}


def running_sums(x: Tensor) -> Tensor:
    """Return the sums of the rows (T, ...) of a tensor up to each of them.

    On a GPU torch adds in an order that varies, and refuses to where the Trainer is to be deterministic.
    """
    if x.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return torch.stack(list(itertools.accumulate(x.unbind())))
    return x.cumsum(0)


def check_returns(returns: Tensor) -> None:
    """Raise EnvironmentFault if a return is not finite in float32, in which results are reported."""
    finite = returns.float().isfinite()
    if not finite.all():
        raise EnvironmentFault(
            f"an episode has the return {float(returns[~finite][0]):g}, which is too large to be learnt from or "
            "reported; scale the rewards, or bound the actions that they depend on"
        )
