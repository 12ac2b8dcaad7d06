"""Collect one rollout in several processes at once, each with its share of the environments."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.remote import RemoteCollector
from lightning_ppo.envs.changes import Change, from_plain
from lightning_ppo.rollout.shapes import Episodes, Rollout
from lightning_ppo.support.errors import EnvironmentFault
from lightning_ppo.support.tree import tree_map


def group_sizes(num_envs: int, processes: int) -> list[int]:
    """Return how many of N environments each process has; the first ones have one more where N is not divisible."""
    return [num_envs // processes + (group < num_envs % processes) for group in range(processes)]


def make_groups(makes: Sequence[Callable[[], Collector]], num_envs: int, *surroundings: Any) -> "GroupedCollector":
    """Return a collector whose first group is in this process, and each other group in its own process.

    Args:
        makes: Make the collectors of the groups.
        num_envs: N, of all groups.
        surroundings: `precision` and `threads` of `RemoteCollector`.
    """
    own, others = makes[0](), list[RemoteCollector]()
    grouped = GroupedCollector(own, others, num_envs)
    try:
        for make in makes[1:]:
            others.append(RemoteCollector(make, own.policy, *surroundings))
    except BaseException:  # one cannot be started: those before it end
        grouped.kill()
        raise
    return grouped


class GroupedCollector:
    """Collects with a group of environments here and one in each of other processes; all with the policy as it is now.

    The groups share no step, only the beginning and the end of a rollout, so nobody waits at every step for the slowest
    environment.

    Args:
        own: Collects here, the first columns of the rollout.
        others: Collect elsewhere, the columns that follow.
        num_envs: N, of all groups.
    """

    def __init__(self, own: Collector, others: Sequence[RemoteCollector], num_envs: int) -> None:
        self.own = own
        self.others = others
        self.policy = own.policy
        self.num_envs = num_envs
        self.num_steps = own.num_steps
        self._failed = False

    def collect(self) -> Rollout:
        """Return the next rollout, of all environments.

        Raises:
            EnvironmentFault: As `Collector.collect` does, once every group is done, and if a process dies.
        """
        started = time.perf_counter()
        faults = []

        def attempt(number: int, work: Callable[[], Rollout | None]) -> Rollout | None:
            try:
                return work()
            except EnvironmentFault as fault:
                where = f"process {number} of {len(self.others) + 1} (rollout.processes)"
                faults.append(EnvironmentFault(f"{where}: {fault}"))
                return None

        for number, other in enumerate(self.others, 2):
            attempt(number, other.begin)
        found = [attempt(1, self.own.collect)]
        found += [attempt(number, other.finish) for number, other in enumerate(self.others, 2)]
        if faults:
            self._failed = True
            raise faults[0]
        rollout = side_by_side([part for part in found if part is not None])
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    def change(self, changes: Sequence[Change]) -> None:
        """Make changes in the environments of this process at once, and in the others with the next order to collect.

        Raises:
            ConfigError: If one cannot be made here.
        """
        self.own.change(changes)
        for other in self.others:
            other.change(changes)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what `Collector.state_dict` does, of each group; None where a process died."""
        states = [self.own.state_dict(), *(other.state_dict() for other in self.others)]
        groups = [state for state in states if state is not None]
        if len(groups) < len(states):
            return None
        if self._failed:  # the others are a rollout further than what was learnt from
            lost = {"env": None, "reason": "one of them failed"}
            groups = [{**group, "stepper": {**group["stepper"], **lost}} for group in groups]
        return {"groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Continue from a saved state of as many groups; return why episodes start anew, if any do."""
        groups: list[Collector | RemoteCollector] = [self.own, *self.others]
        pairs = zip(groups, state["groups"], strict=True)
        reason = max([collector.load_state_dict(group) for collector, group in pairs])
        if not reason:
            self.change(from_plain(state.get("changes", ())))  # that another process had not made yet
        return reason

    def close(self) -> None:
        """Close the environments, and end the processes."""
        self.own.close()
        for other in self.others:
            other.close()

    def kill(self) -> None:
        """End the processes at once, whatever they are doing."""
        for other in self.others:
            other.kill()


def side_by_side(rollouts: Sequence[Rollout]) -> Rollout:
    """Return rollouts of T steps, N_1, N_2, ... environments each, as one of N = N_1 + N_2 + ... environments.

    Their policies are the same; what the stream sets is not set yet. Episodes keep their order within each rollout.
    """
    names = list(dict.fromkeys(name for rollout in rollouts for name in rollout.infos))
    if names:
        rollouts = [rollout.with_infos(names) for rollout in rollouts]
    sizes = [rollout.num_envs for rollout in rollouts]
    rows, first = [], 0
    for rollout, size in zip(rollouts, sizes, strict=True):
        steps, columns = rollout.boundary_rows // size, rollout.boundary_rows % size
        rows.append(steps * sum(sizes) + first + columns)
        first += size

    def joined(name: str, dim: int = 1) -> Any:
        found = [getattr(rollout, name) for rollout in rollouts]
        return None if found[0] is None else tree_map(lambda *leaves: torch.cat(leaves, dim), *found)

    over_envs = ["observations", "actions", "distribution", "log_probs", "values", "next_values", "rewards"]
    over_envs += ["terminations", "truncations", "valid", "action_masks", "starts", "states", "infos"]
    return replace(
        rollouts[0],
        **{name: joined(name) for name in over_envs},
        **{name: joined(name, 0) for name in ("boundary_observations", "boundary_states")},
        boundary_rows=torch.cat(rows),
        episodes=Episodes(*joined("episodes", 0)),
    )
