"""Save and restore the state of environments, episode records and sampling of all ranks."""

import logging
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_ppo.collection.changes import Changes
from lightning_ppo.collection.collector import stepper_states
from lightning_ppo.collection.groups import group_sizes
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.envs.changes import Change
from lightning_ppo.envs.state import largest_part
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.support.distributed import gather_objects, rank, world_size
from lightning_ppo.support.packing import pack, unpack

_log = logging.getLogger(__name__)

TASK = ("id", "kwargs", "wrappers", "action_mask", "atari")
"""Settings that make the environment what it is."""


class Resuming:
    """Saves the state of a stream of rollouts, and restores it into another one.

    Attributes:
        pending: A state that a stream is to continue from, or None.
        new: What this run has changed in its environments before their state is restored.

    Args:
        env: Which environment, and how many of it.
        rollout: How it is collected with.
        changes: What was changed in its environments.
    """

    def __init__(self, env: EnvConfig, rollout: RolloutConfig, changes: Changes) -> None:
        self.env, self.rollout, self.changes = env, rollout, changes
        self.pending: dict[str, Any] | None = None
        self.new: list[Change] = []
        self._said_large = False

    def save(self, stream: RolloutStream) -> dict[str, Any]:
        """Return the state of every rank's stream; call it on all ranks."""
        state = stream.get_state()
        packed = pack(state)
        self._warn_if_large(state, packed)
        return {"ranks": gather_objects(packed), "task": self._task(), "changes": self.changes.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Keep a saved state until the environments exist; what was changed in them is known at once."""
        self.pending = state
        self.new = self.changes.load_state_dict(state.get("changes", {}))
        kwargs, before = self._task()["kwargs"], state.get("task", {}).get("kwargs", {})
        for change in self.changes.training:
            name, kept = change.name, any(change is new for new in self.new)
            if change.how == "set_attr" and not kept and name in kwargs and before.get(name) != kwargs[name]:
                self.changes.forget(change)

    def restore(self, stream: RolloutStream, kind: str) -> None:
        """Restore the pending state into a stream, if there is one.

        Args:
            stream: The rollouts of this rank.
            kind: Name of the class of its vector environment.
        """
        if not self.pending:
            return
        ranks, task = self.pending["ranks"], self.pending.get("task", self._task())
        self.pending = None
        self.new, new = [], self.new
        if len(ranks) != world_size():
            rank_zero_warn(
                f"the checkpoint was written by {len(ranks)} ranks, this run has {world_size()}: "
                "environments and sampling are seeded anew"
            )
            return
        reasons = set(gather_objects(self._restore_rank(stream, kind, unpack(ranks[rank()]), task)))
        for reason in sorted(reasons - {""}):
            rank_zero_only(_log.info)(f"Episodes in progress were restarted: {reason}.")
        stream.collector.change(new)

    def _restore_rank(self, stream: RolloutStream, kind: str, state: dict[str, Any], task: dict[str, Any]) -> str:
        """Restore the state of this rank; return why episodes start anew, if any do."""
        if state["collector"] is None:
            return "the process that collected died"
        steppers = stepper_states(state["collector"])
        if change := self._change(steppers, kind):
            rank_zero_warn(f"the checkpoint has {change}: environments and sampling are seeded anew")
            return ""
        known = {change.key for change in self.changes.training}
        for group in (state["collector"], *state["collector"].get("groups", ())):
            # what a file may call has been looked at by these names
            group["changes"] = [c for c in group.get("changes", ()) if (c["how"], c["name"]) in known]
        ahead = state["collector"].get("ahead")
        if ahead is not None and not (self.rollout.overlap and len(ahead["rewards"]) == self.rollout.num_steps):
            reason = "rollout.overlap or rollout.num_steps has changed"
            rank_zero_warn(f"the rollout that was collected ahead is dropped: {reason}")
        changed = [f"env.{name}" for name, value in self._task().items() if value != task.get(name, value)]
        if changed:
            for stepper in steppers:
                stepper |= {"env": None, "reason": f"{', '.join(changed)} changed since the run was saved"}
        return stream.set_state(state)

    def _change(self, steppers: list[dict[str, Any]], kind: str) -> str:
        """Return what of a saved state does not fit this run; empty where all does."""
        sizes = [len(stepper["ended"]) for stepper in steppers]
        ours = group_sizes(self.env.num_envs, self.rollout.processes)
        kinds = {stepper["kind"] for stepper in steppers}
        if sum(sizes) != self.env.num_envs:
            return f"{sum(sizes)} environments per rank, this run {self.env.num_envs}"
        if sizes != ours:
            return f"environments in {len(sizes)} processes (rollout.processes), this run in {len(ours)}"
        if kinds != {kind}:
            return f"the state of a {', '.join(sorted(kinds))}, this run steps a {kind}"
        return ""

    def _task(self) -> dict[str, Any]:
        return plain({name: getattr(self.env, name) for name in TASK})[0]

    def _warn_if_large(self, state: dict[str, Any], packed: dict[str, Any]) -> None:
        """Say once that the environments' state makes checkpoints large, and what of it."""
        limit = self.env.large_state * 1e6
        if self._said_large or _num_bytes(packed) <= limit or state["collector"] is None:
            return
        states = [found["env"] for found in stepper_states(state["collector"]) if found["env"] is not None]
        size = _num_bytes(pack(states))
        if size > limit:
            self._said_large = True
            _, name = max(map(largest_part, states))
            rank_zero_warn(
                f"{size / 1e6:,.0f} MB of each checkpoint are the state of environments, most of it in {name}: a "
                "get_state() and set_state(state) of theirs can leave out what need not be kept; env.large_state sets "
                "from where on this is said"
            )


def _num_bytes(packed: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in packed["tensors"])
