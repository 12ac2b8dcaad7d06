"""The stream of training data: one item is one fresh rollout with its advantages."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import IterableDataset

from lightning_ppo.collection.collector import RolloutCollector
from lightning_ppo.collection.info_names import InfoNames
from lightning_ppo.rollout.advantages import discounted_sums, estimate_advantages
from lightning_ppo.rollout.shapes import Rollout
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.support.distributed import raise_together, sum_over_ranks
from lightning_ppo.support.errors import EnvironmentFault


class RolloutStream(IterableDataset):
    """Yields `length` rollouts, each collected when it is asked for, with the policy as it then is, or ahead.

    Its exact length keeps Lightning from fetching one item ahead.

    Args:
        collector: Collects.
        settings: Discounting.
        length: Items per iteration over the stream.
        normalize: Whether to normalise advantages.
        precision: Enters the precision context the update runs in.
        digest: Returns a number that must be the same on all ranks, of what was changed in the environments.
        infos: Gives rollouts the same infos on all ranks.
        progress: Returns the share of the training budget that is used.
    """

    def __init__(
        self,
        collector: RolloutCollector,
        settings: RolloutConfig,
        length: int,
        normalize: bool = True,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        digest: Callable[[], int] = int,
        infos: Callable[[Rollout], Rollout] | None = None,
        progress: Callable[[], float] = float,
    ) -> None:
        self.collector = collector
        self.settings = settings
        self.length = length
        self.normalize = normalize
        self.precision = precision
        self.digest = digest
        self.infos = infos or InfoNames()
        self.progress = progress
        self._running = torch.zeros(collector.num_envs, dtype=torch.float64)

    def __len__(self) -> int:
        """Items per iteration over the stream."""
        return self.length

    def __iter__(self) -> Iterator[Rollout]:
        """Yield fresh rollouts."""
        for _ in range(self.length):
            yield self.next_rollout()

    def next_rollout(self) -> Rollout:
        """Collect a rollout and estimate its advantages."""
        fault = None
        try:
            with self.precision():
                rollout = self.collector.collect()
        except EnvironmentFault as error:
            fault = error
        raise_together(fault, next(self.collector.policy.parameters()).device, self.digest())
        rollout = self.infos(rollout)
        self._estimate(rollout)
        return rollout

    @torch.no_grad()
    def _estimate(self, rollout: Rollout) -> None:
        scaler = self.collector.policy.reward_scaler
        progress, schedules = self.progress(), self.settings.schedules()
        rollout.gamma, rollout.gae_lambda = (schedules[name](progress) for name in ("gamma", "gae_lambda"))
        rollout.scaled_rewards = rollout.rewards
        if scaler is not None:
            ended = rollout.terminations | rollout.truncations
            rewards = torch.where(rollout.valid, rollout.rewards, 0.0)
            sums, self._running = discounted_sums(rewards, ended, self._running.to(rewards.device), rollout.gamma)
            scaler.update(sums[rollout.valid], sum_over_ranks)
            rollout.scaled_rewards = scaler(rollout.rewards)
        rollout.advantages, rollout.returns = estimate_advantages(
            rollout, rollout.values, rollout.next_values, self.normalize, sum_over_ranks
        )
        rollout.as_estimated()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: Lightning asks every loader, and the datamodule saves `get_state` for all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, see `state_dict`."""

    def get_state(self) -> dict[str, Any]:
        """Return everything the next rollout depends on besides the policy, as plain data."""
        return {"collector": self.collector.state_dict(), "discounted_sums": self._running.cpu().clone()}

    def set_state(self, state: dict[str, Any]) -> str:
        """Continue from a saved state; return why episodes start anew, if any do."""
        reason = self.collector.load_state_dict(state["collector"])
        self._running = self._running if reason else state["discounted_sums"].clone()
        return reason
