"""Watch one copy of an environment: name what goes wrong in it, and replace it if asked to."""

import copy
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from lightning_ppo.envs.built import built_of
from lightning_ppo.envs.changes import Change, Outcome, change_innermost, layers_within
from lightning_ppo.envs.declared import NOTICE, Problem, as_declared, misfit, outside
from lightning_ppo.envs.processes import FAULT, REPLACED, shown
from lightning_ppo.envs.scores import notices_of
from lightning_ppo.envs.state import get_env_state, set_env_state
from lightning_ppo.support.errors import EnvironmentFault, described, one_line
from lightning_ppo.support.notices import warn_once
from lightning_ppo.support.packing import from_bytes, to_bytes
from lightning_ppo.support.tree import tree_leaves

_log = logging.getLogger(__name__)

MakeEnv = Callable[[], gymnasium.Env]

_RESERVED = {"final_obs", "final_info"}
"""Infos by which vector environments tell how episodes ended; those of a copy would take their place."""


_REWARDS = frozenset({float, int, np.float32, np.float64})
_FLAGS = frozenset({bool, np.bool_})
"""Types of rewards and flags that need no further look."""


class _TimedOut(BaseException):
    """Not an Exception, so that an environment that catches those is interrupted all the same."""


class GuardedEnv(gymnasium.Wrapper):
    """Names copy, step and action where an environment raises, hangs, or returns what it must not.

    A copy that may be replaced reports its fault as data: `step` returns a filler observation and truncated=True, and
    the info of the `reset` that follows, which starts an episode in a new copy, has the keys FAULT and REPLACED. One
    that must not, raises; in another process it cannot, and reports REPLACED as False.

    Args:
        make: Makes the environment.
        index: Index of the copy.
        timeout: Seconds that a step or reset may take; None waits for ever. Only code that returns to Python can be
            interrupted.
        max_restarts: How often the copy is replaced.
        raises: Whether faults that are not mended are raised, not reported.
    """

    not_state = ("_plain",)

    def __init__(
        self, make: MakeEnv, index: int, timeout: float | None = None, max_restarts: int = 0, raises: bool = True
    ) -> None:
        super().__init__(make())
        self.index = index
        self.steps = 0
        # functions are settings; all other attributes are state, and come back on resuming
        self._make = make
        self._time_limit = nullcontext if timeout is None else lambda: interrupted_after(timeout)
        self._plain = timeout is None and not max_restarts
        self._restarts = 0
        self._mendable = lambda: self._restarts < max_restarts
        self._raises = lambda: raises
        changes: dict[Any, Change] = {}
        self._changes = lambda: changes
        self._seed = 0
        self._fault = ""
        self._notices = notices_of(self.env)
        self._noted = self._renamed = False
        space = self.env.observation_space
        self._declared = (space.shape, space.dtype) if isinstance(space, gymnasium.spaces.Box) else None
        self.refusal = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, in a new copy if the former one has failed."""
        self._seed = self._seed if seed is None else seed
        fault, self._fault = self._fault, ""
        if not fault:
            try:
                return self._checked("reset", self.env.reset, seed=seed, options=options)
            except EnvironmentFault as error:
                fault = str(error)
        while self._mendable():
            self._restarts += 1
            try:
                return self._replaced(fault)
            except EnvironmentFault as error:
                fault = str(error)
        if self._raises():
            raise EnvironmentFault(fault)
        return self._filler(), {FAULT: fault, REPLACED: False}

    def step(self, action: Any) -> Any:
        """Step, or report a fault as the end of the episode."""
        self.steps += 1
        try:
            result = self._checked("step", self.env.step, action)
        except EnvironmentFault as error:
            fault = f"{error}{shown(action)}"
            if self._raises() and not self._mendable():
                raise EnvironmentFault(fault) from error
            self._fault = fault
            return self._filler(), 0.0, False, True, {}
        observation, reward, terminated, truncated, info = result
        if terminated or truncated:
            # the reset that follows may write into the array that this environment has returned
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info

    def make_change(self, change: Change) -> Outcome:
        """Make a change in this copy, and in each that takes its place."""
        try:
            with self._time_limit():
                outcome = change_innermost(layers_within(self.env), change)
        except _TimedOut as limit:
            return Outcome("failed", f"env {self.index} did not return within {limit} (env.timeout)")
        if outcome.status == "made":
            self._changes().pop(change.key, None)
            self._changes()[change.key] = change
        return outcome

    @property
    def exact_state(self) -> tuple[bytes, str]:
        """The state of the environment as bytes, empty where it cannot be had, and why not."""
        state, reason = get_env_state(self)
        return (b"" if state is None else to_bytes(state)), reason

    @exact_state.setter
    def exact_state(self, state: bytes) -> None:
        self.refusal = set_env_state(self, from_bytes(state))

    @property
    def built_facts(self) -> dict[str, str]:
        """What the environment was built with."""
        return built_of(self).facts()

    def close(self) -> None:
        """Close the environment; if it raises, it is left open, and a warning says so."""
        try:
            super().close()
        except (Exception, SystemExit) as error:
            _warn_of_close(f"env {self.index}", error)

    def _replaced(self, fault: str) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a new copy, seeded by how many came before."""
        try:
            self.env = self._make()
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{fault}; and could not be built again: {one_line(error)}") from error
        for change in list(self._changes().values()):
            outcome = self.make_change(change)
            if outcome.status != "made":
                raise EnvironmentFault(f"{fault}; and {change} could not be made again: {outcome.reason}")
        seed = int(np.random.SeedSequence([self._seed, self._restarts]).generate_state(1)[0])
        observation, info = self._checked("reset", self.env.reset, seed=seed)
        return observation, {**info, FAULT: fault, REPLACED: True}

    def _filler(self) -> Any:
        space = self.env.observation_space
        return next(iter(iterate(batch_space(space, 1), create_empty_array(space, n=1, fn=np.zeros))))

    def _checked(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            if self._plain:
                result = call(*args, **kwargs)
                if self._is_ordinary(result):
                    return result
            else:
                with self._time_limit():
                    result = call(*args, **kwargs)
            problem = self._problem(result, 5 if what == "step" else 2)
            if problem is None:
                result, problem = self._as_declared(result, f"{what} {self.steps}")
        except _TimedOut as limit:
            raise EnvironmentFault(
                f"env {self.index} did not return from {what} {self.steps} within {limit} (env.timeout)"
            ) from None
        except (Exception, SystemExit) as error:
            raised = f"env {self.index} raised in {what} after {self.steps} steps: {described(error)}"
            raise EnvironmentFault(raised) from error
        if problem is not None:
            raise EnvironmentFault(f"env {self.index} returned {problem[0]} from {what} {self.steps}, {problem[1]}")
        return result

    def _is_ordinary(self, result: Any) -> bool:
        """Return whether a step returned just what it should, which most do; all others are looked at in full."""
        if type(result) is not tuple or len(result) != 5 or self._notices:
            return False
        observation, reward, terminated, truncated, info = result
        return (
            self._is_as_declared(observation)
            and type(reward) in _REWARDS
            and type(terminated) in _FLAGS
            and type(truncated) in _FLAGS
            and type(info) is dict
            and _RESERVED.isdisjoint(info)
        )

    def _problem(self, result: Any, length: int) -> Problem:
        """Return what is wrong with the result of a step (5 items) or reset (2), and what was expected."""
        if not isinstance(result, tuple) or len(result) != length:
            items = f"a {type(result).__name__}" + (f" of {len(result)}" if hasattr(result, "__len__") else "")
            return items, f"expected a tuple of {length}"
        if not isinstance(result[-1], dict):
            return f"the info {result[-1]!r}", "expected a dict"
        problem = None if self._is_as_declared(result[0]) else misfit(self.env.observation_space, result[0])
        if problem is not None or length == 2:
            return problem
        _, reward, terminated, truncated, _ = result
        if not isinstance(reward, float | int | np.number) and not (np.ndim(reward) == 0 and _is_number(reward)):
            return f"the reward {one_line(repr(reward), 60)}", "expected a number"
        if self._mendable() and not np.isfinite(float(reward)):
            return f"the reward {float(reward)}", "expected a finite number"
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_):
                return f"{name}={one_line(repr(flag), 60)}", "expected a bool"
        return None

    def _is_as_declared(self, observation: Any) -> bool:
        """Return whether an observation is the array that its Box declares, which most are; others are looked at."""
        return type(observation) is np.ndarray and (observation.shape, observation.dtype) == self._declared

    def _without_reserved(self, result: Any) -> Any:
        """Return the result of a step or reset without infos of the vector environment's own names."""
        info = result[-1]
        names = sorted(_RESERVED & info.keys())
        if not self._renamed:
            self._renamed = True
            self._notices.append(
                f"has {' and '.join(names)} in its infos, which are names of the vector environment's own: left out"
            )
        return (*result[:-1], {key: value for key, value in info.items() if key not in _RESERVED})

    def _as_declared(self, result: Any, where: str) -> tuple[Any, Problem]:
        """Return the result of a step or reset with an observation of the declared dtypes, and what is wrong with it.

        That of a copy that cannot be replaced is looked at with the others, as are whole rollouts.
        """
        if not _RESERVED.isdisjoint(result[-1]):
            result = self._without_reserved(result)
        if self._is_as_declared(result[0]) and not self._notices and not self._mendable():
            return result, None
        space = self.env.observation_space
        observation, problem, note = as_declared(space, result[0])
        if problem is None and self._mendable():
            problem = _not_finite(observation) or outside(space, observation)
        if note and not self._noted:
            self._noted = True
            self._notices.append(f"returned observations in {where} of {note}")
        info = result[-1]
        goes_on = len(result) == 2 or not (result[2] or result[3])
        if self._notices and goes_on and NOTICE not in info:
            info = {**info, NOTICE: self._notices.pop(0)}
        elif observation is result[0]:
            return result, problem
        return (observation, *result[1:-1], info), problem


def close_env(env: VectorEnv) -> None:
    """Close a vector environment; if it raises, it is left open, and a warning says so."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        _warn_of_close(type(env.unwrapped).__name__, error)


def _warn_of_close(name: str, error: BaseException) -> None:
    raised = f"raised in close: {described(error)}"
    warn_once(_log, raised, f"{name} {raised}; it is left open, and so are others that do the same")


def _not_finite(observation: Any) -> Problem:
    """Return the first number of an observation that is none, or infinite."""
    for leaf in tree_leaves(observation):
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            return f"the observation {values[~np.isfinite(values)][0]}", "expected finite numbers"
    return None


def _is_number(value: Any) -> bool:
    return np.issubdtype(np.asarray(value).dtype, np.number)


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise in the block if it takes longer, wherever its Python code then is. Works in the main thread."""
    armed, started = True, time.monotonic()

    def expire(number: int, frame: Any) -> None:
        if armed:
            raise _TimedOut(f"{seconds:g} s")

    others, interval = signal.setitimer(signal.ITIMER_REAL, 0.0)
    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if others:  # somebody else's timer goes on, or rings now if its time came meanwhile
            left = others - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, left if left > 1e-6 else interval, interval)
            if left <= 1e-6:
                signal.raise_signal(signal.SIGALRM)
