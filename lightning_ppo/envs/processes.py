"""Copies of an environment in one process each, which may die or hang."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.utils import iterate

from lightning_ppo.envs.changes import Change, Outcome
from lightning_ppo.speed.copy_process import step_copy
from lightning_ppo.support.errors import EnvironmentFault, how_it_ended, one_line
from lightning_ppo.support.packing import from_bytes, to_bytes
from lightning_ppo.support.randomness import (
    derive_seeds,
    get_random_state,
    seed_global_generators,
    set_random_state,
)

FAULT, REPLACED = "lightning_ppo.fault", "lightning_ppo.replaced"
"""Infos of a copy that failed: what happened, and whether a new copy has taken its place."""

GRACE = 5.0
"""Seconds that a process has to report its own timeout, to die, or to close, before it is taken for lost."""


class ProcessVectorEnv(AsyncVectorEnv):
    """Steps each copy in its own process; names the one that dies, and can start all of them again.

    What the copies themselves do wrong they report as data (see `GuardedEnv`). A process that dies or cannot be
    interrupted takes the others with it: all are started again, and every episode in progress is cut off.

    Args:
        copies: Make the copies.
        timeout: Seconds that a copy's step or reset may take; None waits for ever.
        max_restarts: How often all processes are started again.
    """

    def __init__(
        self, copies: Sequence[Callable[[], gymnasium.Env]], timeout: float | None = None, max_restarts: int = 0
    ) -> None:
        # a step may have to wait for the end of one, for a new copy and for its reset
        self._limit = None if timeout is None else 3 * timeout + GRACE
        self._max_restarts, self._restarts = max_restarts, 0
        self._seeds: list[int] = []
        self._changes: dict[Any, Change] = {}
        trainer = os.getpid()
        here = np.random.RandomState()
        here.set_state(np.random.get_state())  # nothing is drawn from the generator itself
        seeds = derive_seeds(int(here.randint(2**31)), 0, len(copies), "process")
        self._copies = [_undisturbed(make, trainer, seed) for make, seed in zip(copies, seeds, strict=True)]
        self._start()

    def _start(self) -> None:
        self.closed = False
        super().__init__(self._copies, autoreset_mode=AutoresetMode.SAME_STEP, worker=step_copy)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all copies.

        Raises:
            EnvironmentFault: If a process dies or hangs.
        """
        self._seeds = list(seed) if isinstance(seed, list) else self._seeds
        try:
            self.reset_async(seed=seed, options=options)
            return self.reset_wait(self._limit)
        except (EOFError, ConnectionError, multiprocessing.TimeoutError) as error:
            raise EnvironmentFault(self._what_happened("reset", error)) from error

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all copies.

        Raises:
            EnvironmentFault: If a process dies or hangs, and all have been started again as often as is allowed.
        """
        try:
            self.step_async(actions)
            return self.step_wait(self._limit)
        except (EOFError, ConnectionError, multiprocessing.TimeoutError) as error:
            fault = self._what_happened("step", error, list(iterate(self.action_space, actions)))
            if self._restarts == self._max_restarts:
                raise EnvironmentFault(fault) from error
        self._restarts += 1
        self.close()
        self._start()
        for change in list(self._changes.values()):
            self.make_change(change)
        seeds = [int(np.random.SeedSequence([s, self._restarts]).generate_state(1)[0]) for s in self._seeds]
        observations, infos = self.reset(seed=seeds)
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        infos |= {
            FAULT: np.full(self.num_envs, fault, dtype=object),
            f"_{FAULT}": everywhere,
            REPLACED: everywhere,
            "final_obs": list(iterate(self.observation_space, observations)),
        }
        return observations, np.zeros(self.num_envs), ~everywhere, everywhere, infos

    def make_change(self, change: Change) -> list[Outcome]:
        """Make a change in every copy, and in all that take their places; return what came of it in each.

        Raises:
            EnvironmentFault: If a process dies or hangs.
        """
        try:
            pickle.dumps(change)
        except Exception as error:  # whatever an object of the user's raises; half of the copies may not be reached
            return [Outcome("failed", f"the processes of the copies cannot be sent it: {one_line(error)}")]
        try:
            self.call_async("make_change", change)
            outcomes = list(self.call_wait(self._limit))
        except (EOFError, ConnectionError, multiprocessing.TimeoutError) as error:
            raise EnvironmentFault(self._what_happened(f"{change.how} {change.name}", error)) from error
        if all(outcome.status == "made" for outcome in outcomes):
            self._changes.pop(change.key, None)
            self._changes[change.key] = change
        return outcomes

    def _what_happened(self, what: str, error: Exception, actions: Sequence[Any] | None = None) -> str:
        """Return a sentence on the first process that is dead or has not answered."""
        if isinstance(error, multiprocessing.TimeoutError):
            index = next((i for i, pipe in enumerate(self.parent_pipes) if not pipe.poll(0)), 0)
            problem = f"did not return from {what} within {self._limit:g} s and could not be interrupted (env.timeout)"
        else:
            ended = wait([process.sentinel for process in self.processes], GRACE)
            index = next((i for i, process in enumerate(self.processes) if process.sentinel in ended), 0)
            self.processes[index].join(GRACE)
            problem = f"died in {what}: its process ended {how_it_ended(self.processes[index].exitcode)}"
        return f"env {index} {problem}{'' if actions is None else shown(actions[index])}"

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ask the processes to close their environments, and end those that do not within GRACE seconds."""
        for pipe in self.parent_pipes:
            with contextlib.suppress(OSError, AttributeError):  # closed, broken or None
                pipe.send(("close", None))
        deadline = time.monotonic() + GRACE
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0.0))
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()


def shown(action: Any) -> str:
    """Return the last action of a copy for the end of an error message, whatever the structure of its space."""
    parts = np.array2string(action, threshold=20) if isinstance(action, np.ndarray) else str(action)
    return f" (last action {one_line(parts)})"


class OwnGenerators(gymnasium.Wrapper):
    """The copy of a process of its own: whatever seeds the copy seeds the global generators of that process, too."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is not None:
            seed_global_generators(derive_seeds(seed, 0, 1, "process")[0])
        return self.env.reset(seed=seed, options=options)

    @property
    def generators(self) -> bytes:
        """The state of the global generators."""
        return to_bytes(get_random_state())

    @generators.setter
    def generators(self, state: bytes) -> None:
        set_random_state(from_bytes(state))


def _undisturbed(make: Callable[[], gymnasium.Env], trainer: int, seed: int) -> Callable[[], gymnasium.Env]:
    """Return `make` for another process, where signals that are the trainer's to handle are ignored.

    The global generators, which it inherits, are seeded anew there: environments that draw from them would be alike.
    """

    def make_undisturbed() -> gymnasium.Env:
        if os.getpid() == trainer:
            return make()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        seed_global_generators(seed)
        return OwnGenerators(make())

    return make_undisturbed
