"""Collect the next rollout in another process while the current one is learnt from, with a policy one update older."""

import contextlib
import multiprocessing
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper
from torch import Tensor, nn

from lightning_ppo.collector import Collector
from lightning_ppo.config import EnvConfig
from lightning_ppo.distributed import from_bytes, to_bytes
from lightning_ppo.envs.atari import with_lessons
from lightning_ppo.envs.stagger import is_staggered
from lightning_ppo.errors import ConfigError, EnvironmentFault, UserError
from lightning_ppo.policy import ActorCritic
from lightning_ppo.random_state import get_random_state, set_random_state
from lightning_ppo.rollout import Episodes, Rollout
from lightning_ppo.tree import tree_map

END = "end"
"""The order to stop."""

GRACE = 10.0
"""Seconds that the process has to close its environments before it is ended."""


class _Surroundings(NamedTuple):
    """What this process has set and the other one takes over."""

    start_method: str
    """How processes of environments are started; that of a spawned process would be to spawn."""
    threads: int
    dtype: torch.dtype
    autocast: torch.dtype | None
    """Precision of autocast on the CPU, None where it is off."""


def make_collector(
    make_env: Callable[[], VectorEnv],
    settings: EnvConfig,
    policy: ActorCritic,
    num_steps: int,
    noise_seed: int,
    seeds: list[int],
) -> Collector:
    """Return a collector with environments of its own in a process of its own; see `Collector`."""
    torch.manual_seed(noise_seed)  # the global generators, from which environments may draw
    np.random.seed(noise_seed)
    random.seed(noise_seed)
    env = with_lessons(make_env(), settings)
    generator = torch.Generator().manual_seed(noise_seed)
    return Collector(env, policy, num_steps, generator, seeds, settings.action_mask, is_staggered(env))


class OverlappedCollector:
    """Collects in another process, one rollout ahead of learning.

    As it hands a rollout out, it has the next one begun with the policy as it then is. The other process has a policy
    of its own, whose weights and statistics come with the order to collect, and which also computes log-probabilities
    and values; so a rollout is that of one policy, one update older than the one that learns from it. Only the first
    rollout, beside which there was nothing to learn from, has the version that learns from it.

    A process, since a thread would share Python's lock with the update. It is spawned, not forked: a fork of a process
    with threads may hang. What is exchanged between ranks is exchanged in this process alone.

    Args:
        make: Makes the collector, in the other process; it is sent there with the policy in it.
        policy: The policy that learns, on the CPU.
        num_envs: N.
        num_steps: T.
        precision: Enters the precision context the update runs in.
    """

    def __init__(
        self,
        make: Callable[[], Collector],
        policy: ActorCritic,
        num_envs: int,
        num_steps: int,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.policy = policy
        self.num_envs = num_envs
        self.num_steps = num_steps
        with precision():
            autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            dtype = torch.get_default_dtype()
        surroundings = _Surroundings(multiprocessing.get_start_method(), torch.get_num_threads(), dtype, autocast)
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        # not a daemon, which could not have the processes of env.backend=async
        self._process = context.Process(target=_work, args=(there, CloudpickleWrapper(make), surroundings))
        try:
            self._process.start()
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ConfigError(f"rollout.overlap: the policy cannot be sent to another process: {error}") from error
        there.close()
        # before multiprocessing waits for processes at the end of the interpreter
        self._end = Finalize(self, _end, (self._pipe, self._process), exitpriority=10)
        self._ahead: Rollout | UserError | None = None
        self._begun = False
        self._last_state: dict[str, Any] | None = None

    def collect(self) -> Rollout:
        """Return the rollout in progress when it is complete, and begin the next one with the policy as it is now.

        Its `collect_seconds` are the time that it was waited for.

        Raises:
            EnvironmentFault: As `Collector.collect` does, and if the process dies.
        """
        started = time.perf_counter()
        if not self._begun:
            self._begin()
        rollout = self._complete()
        if isinstance(rollout, UserError):
            raise rollout
        self._begin()
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    def _begin(self) -> None:
        self._ahead, self._begun = None, True
        weights = [x.detach().numpy() for x in _tensors(self.policy)]
        self._send("collect", (self.policy.version, weights))

    def _complete(self) -> Rollout | UserError:
        """Wait for the rollout in progress."""
        if self._ahead is None:
            try:
                self._ahead = _to_rollout(self._receive())
            except UserError as error:
                self._ahead = error
        return self._ahead

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
        if error is not None:
            raise error
        return answer

    def _death(self) -> EnvironmentFault:
        self._process.join(GRACE)
        code = self._process.exitcode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return EnvironmentFault(f"the process that collects (rollout.overlap) ended {how}")

    def close(self) -> None:
        """Close the environments once the rollout in progress is complete, and end the process."""
        self._last_state = self.state_dict()
        self._end()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self._end()

    def state_dict(self) -> dict[str, Any] | None:
        """Return what `Collector.state_dict` does, as of the end of the rollout in progress, and that rollout.

        Where the environment's state cannot be had, the rollout is left out and lost, as the episodes in progress are;
        where the process died there is no state.
        """
        if self._last_state is not None:
            return self._last_state
        ahead = self._complete() if self._begun else None
        try:
            self._send("save")
            state = from_bytes(self._receive())
        except UserError:
            return None
        if not isinstance(ahead, Rollout) or state["stepper"]["env"] is None:
            return {**state, "ahead": None}
        return {**state, "ahead": _to_plain(ahead, lambda x: x) | {"collect_seconds": 0.0}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the rollout that was in progress, unless T has changed."""
        ahead = state.get("ahead")
        self._send("load", to_bytes({**state, "ahead": None}))
        self._receive()
        if ahead is not None and len(ahead["rewards"]) == self.num_steps:
            self._ahead, self._begun = Rollout(**{**ahead, "episodes": Episodes(*ahead["episodes"])}), True


def _tensors(policy: nn.Module) -> Iterator[Tensor]:
    yield from policy.parameters()
    yield from policy.buffers()


def _to_plain(rollout: Rollout, convert: Callable[[Tensor], Any]) -> dict[str, Any]:
    """Return the fields of a rollout, its tensors converted."""
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    return tree_map(lambda x: convert(x) if isinstance(x, Tensor) else x, values)


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


# ---------------------------------------------------------------- in the other process


def _work(pipe: Connection, make: Callable[[], Collector], surroundings: _Surroundings) -> None:
    """Obey orders until the last one, or until the pipe is closed; signals are the trainer's to handle."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.set_start_method(surroundings.start_method, force=True)
    torch.set_num_threads(surroundings.threads)
    torch.set_default_dtype(surroundings.dtype)
    with ExitStack() as stack:
        if surroundings.autocast is not None:
            stack.enter_context(torch.autocast("cpu", surroundings.autocast, cache_enabled=False))
        worker = _Worker(make)
        try:
            order, argument = pickle.loads(pipe.recv_bytes())
            while order != END:
                pipe.send_bytes(pickle.dumps(worker.obey(order, argument), pickle.HIGHEST_PROTOCOL))
                order, argument = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            pass  # the trainer is gone
        worker.close()


class _Worker:
    """Makes the collector at the first order, so that whatever fails is an answer."""

    def __init__(self, make: Callable[[], Collector]) -> None:
        self.make = make
        self.collector: Collector | None = None

    def obey(self, order: str, argument: Any) -> tuple[Any, Exception | None]:
        """Return what an order asks for, or what went wrong."""
        try:
            self.collector = self.collector or self.make()
            return getattr(self, order)(self.collector, argument), None
        except UserError as error:
            return None, error
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return None, EnvironmentFault(f"the process that collects (rollout.overlap) failed: {text}")

    def collect(self, collector: Collector, argument: tuple[int, list[np.ndarray]]) -> dict[str, Any]:
        version, weights = argument
        with torch.no_grad():
            for own, learnt in zip(_tensors(collector.policy), weights, strict=True):
                own.copy_(torch.from_numpy(learnt))
        collector.policy.version = version
        return _to_plain(collector.collect(), Tensor.numpy)

    def save(self, collector: Collector, argument: None) -> bytes:
        return to_bytes({**collector.state_dict(), "random": get_random_state()})

    def load(self, collector: Collector, state: bytes) -> None:
        content = from_bytes(state)
        collector.load_state_dict(content)
        set_random_state(content["random"])

    def close(self) -> None:
        """Close the environments."""
        if self.collector is not None:
            self.collector.stepper.env.close()
