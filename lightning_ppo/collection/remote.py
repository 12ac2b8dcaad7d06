"""A collector in another process, which obeys orders: collect with these weights, save, load."""

import contextlib
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from gymnasium.vector.utils import CloudpickleWrapper

from lightning_ppo.collection.collector import RolloutCollector
from lightning_ppo.collection.worker import END, SIGNALS, Surroundings, tensors_of, work
from lightning_ppo.envs.changes import Change, from_plain, to_plain
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import Episodes, Rollout
from lightning_ppo.speed import switch
from lightning_ppo.support.errors import ConfigError, EnvironmentFault, UserError, how_it_ended, one_line
from lightning_ppo.support.packing import from_bytes, to_bytes
from lightning_ppo.support.tree import tree_map

GRACE = 10.0
"""Seconds that the process has to close its environments before it is ended."""


IMPORTED = "it imports the script that trains, whose calls stand below `if __name__ == '__main__':`"
"""What a process that collects asks of a script."""


class RemoteCollector:
    """Collects in another process, while this one does something else.

    The other process has a policy of its own, whose weights and statistics come with the order to collect, and which
    also computes log-probabilities and values; so a rollout is that of one policy, the one that the order was given
    with.

    A process, since a thread would share Python's lock with what goes on here. It is spawned, not forked: a fork of a
    process with threads may hang. What is exchanged between ranks is exchanged in this process alone.

    Args:
        make: Makes the collector, in the other process; it is sent there with the policy in it.
        policy: The policy that learns, on the CPU.
        precision: Enters the precision context the update runs in.
        threads: Threads of torch in the other process; None means as many as here.

    Raises:
        ConfigError: If the policy or the arguments of the environment cannot be sent.
    """

    def __init__(
        self,
        make: Callable[[], RolloutCollector],
        policy: ActorCritic,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        threads: int | None = None,
    ) -> None:
        self.policy = policy
        with precision():
            autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            dtype = torch.get_default_dtype()
        threads = threads or torch.get_num_threads()
        surroundings = Surroundings(multiprocessing.get_start_method(), threads, dtype, autocast, switch.is_on())
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        # not a daemon, which could not have the processes of env.backend=async
        self._process = context.Process(target=work, args=(there, CloudpickleWrapper(make), surroundings))
        # blocked until the other process ignores them: a Ctrl-C would end a process that is still importing
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            reason = "the policy or the environment's arguments cannot be sent to another process that collects"
            raise ConfigError(f"{reason}: {error}") from error
        except RuntimeError as error:  # this process is one that imports the script that started it
            raise ConfigError(f"rollout.overlap, rollout.processes: {IMPORTED}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        there.close()
        # before multiprocessing waits for processes at the end of the interpreter
        self._end = Finalize(self, _end, (self._pipe, self._process), exitpriority=10)
        self._found: Rollout | UserError | None = None
        self._last_state: dict[str, Any] | None = None
        self._changes: list[Change] = []
        self._has_answered = False
        self.begun = False
        """Whether a rollout has been begun or given back."""

    def begin(self) -> None:
        """Have a rollout collected with the policy as it is now.

        Raises:
            EnvironmentFault: If the process has died.
        """
        self._found, self.begun = None, True
        weights = [x.detach().numpy() for x in tensors_of(self.policy)]
        changes, self._changes = self._changes, []
        self._send("collect", (self.policy.version, weights, changes))

    def change(self, changes: Sequence[Change]) -> None:
        """Have changes made before the next rollout is begun: they go with the order to collect.

        Raises:
            ConfigError: If they cannot be sent.
        """
        for change in changes:
            try:
                pickle.dumps(change)
            except Exception as error:  # whatever an object of the user's raises
                raise ConfigError(
                    f"{change}: the process that collects cannot be sent it: {one_line(error)}; set "
                    "rollout.overlap=false and rollout.processes=1"
                ) from error
        self._changes += changes

    def finish(self) -> Rollout:
        """Return the rollout that was begun when it is complete; again, if it is asked again.

        Raises:
            EnvironmentFault: As `Collector.collect` does, and if the process dies.
        """
        if self._found is None:
            try:
                self._found = _to_rollout(self._receive())
            except UserError as error:
                self._found = error
        if isinstance(self._found, UserError):
            raise self._found
        return self._found

    def give_back(self, rollout: Rollout) -> None:
        """Make a rollout that was saved the one that was begun and is complete."""
        self._found, self.begun = rollout, True

    def _send(self, order: str, argument: Any = None) -> None:
        try:
            self._pipe.send_bytes(pickle.dumps((order, argument), pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> Any:
        try:
            answer, error = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as broken:
            raise self._death() from broken
        self._has_answered = True
        if error is not None:
            raise error
        return answer

    def _death(self) -> EnvironmentFault:
        self._process.join(GRACE)
        code = self._process.exitcode
        why = "" if self._has_answered or code is None or code < 0 else f" before it began; {IMPORTED}"
        return EnvironmentFault(f"the process that collects ended {how_it_ended(code)}{why}")

    def close(self) -> None:
        """Close the environments once the rollout that was begun is complete, and end the process."""
        self._last_state = self.state_dict()
        self._end()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self._end()

    def state_dict(self) -> dict[str, Any] | None:
        """Return the collector's state as of the end of the rollout that was begun; None where the process died."""
        if self._last_state is not None:
            return self._last_state
        if self.begun:
            with contextlib.suppress(UserError):
                self.finish()
        try:
            self._send("save")
            state = self._receive()
        except UserError:
            return None
        return None if state is None else from_bytes(state) | {"changes": to_plain(self._changes)[0]}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Continue from a saved state; return why episodes start anew, if any do.

        Raises:
            EnvironmentFault: If that fails in the other process.
        """
        self._send("load", to_bytes({**state, "changes": []}))
        reason = self._receive()
        self._changes = [] if reason else from_plain(state.get("changes", ()))
        return reason


def _to_rollout(plain: dict[str, Any]) -> Rollout:
    def tensor(x: Any) -> Any:
        # unpickled arrays without elements share their memory, which torch.save refuses
        return torch.from_numpy(x if x.size else x.copy()) if isinstance(x, np.ndarray) else x

    values = tree_map(tensor, plain)
    return Rollout(**{**values, "episodes": Episodes(*values["episodes"])})


def _end(pipe: Connection, process: Any) -> None:
    # processes that were forked from this one may hold the pipe open after it is closed here
    with contextlib.suppress(OSError):
        pipe.send_bytes(pickle.dumps((END, None)))
    pipe.close()
    process.join(GRACE)
    if process.is_alive():
        process.kill()
        process.join()
