"""Collect the next rollout in another process while the current one is learnt from, with a policy one update older."""

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ppo.collection.collector import stepper_states
from lightning_ppo.collection.remote import RemoteCollector
from lightning_ppo.collection.worker import to_plain
from lightning_ppo.envs.changes import Change
from lightning_ppo.rollout.shapes import Episodes, Rollout
from lightning_ppo.support.errors import UserError
from lightning_ppo.support.tree import tree_map


class OverlappedCollector:
    """Collects in another process, one rollout ahead of learning.

    As it hands a rollout out, it has the next one begun with the policy as it then is; so a rollout is one update older
    than the policy that learns from it. Only the first one, beside which there was nothing to learn from, has the
    version that learns from it.

    Args:
        remote: Collects, in the other process.
        num_envs: N.
        num_steps: T.
    """

    def __init__(self, remote: RemoteCollector, num_envs: int, num_steps: int) -> None:
        self.remote = remote
        self.policy = remote.policy
        self.num_envs = num_envs
        self.num_steps = num_steps

    def collect(self) -> Rollout:
        """Return the rollout in progress when it is complete, and begin the next one with the policy as it is now.

        Its `collect_seconds` are the time that it was waited for.

        Raises:
            EnvironmentFault: As `Collector.collect` does, and if the process dies.
        """
        started = time.perf_counter()
        if not self.remote.begun:
            self.remote.begin()
        rollout = self.remote.finish()
        self.remote.begin()
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    def change(self, changes: Sequence[Change]) -> None:
        """Have changes made after the rollout in progress, before the next one is begun."""
        self.remote.change(changes)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what `Collector.state_dict` does, as of the end of the rollout in progress, and that rollout.

        Where the environment's state cannot be had, the rollout is left out and lost, as the episodes in progress are;
        where the process died there is no state.
        """
        state = self.remote.state_dict()
        if state is None:
            return None
        try:
            ahead = self.remote.finish() if self.remote.begun else None
        except UserError:
            ahead = None
        if ahead is None or any(stepper["env"] is None for stepper in stepper_states(state)):
            return {**state, "ahead": None}
        return {**state, "ahead": to_plain(ahead, lambda x: x) | {"collect_seconds": 0.0}}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Continue from a saved state, with the rollout that was in progress, unless T or the task has changed.

        That is learnt from in the policy's precision, which may be another one now.

        Returns:
            Why episodes start anew, if any do.
        """
        ahead = state.get("ahead")
        reason = self.remote.load_state_dict({**state, "ahead": None})
        if ahead is not None and not reason and len(ahead["rewards"]) == self.num_steps:
            dtype = self.policy.dtype
            episodes = Episodes(*ahead["episodes"])
            values = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, ahead)
            self.remote.give_back(Rollout(**{**values, "episodes": episodes}))
        return reason

    def close(self) -> None:
        """Close the environments once the rollout in progress is complete, and end the process."""
        self.remote.close()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self.remote.kill()
