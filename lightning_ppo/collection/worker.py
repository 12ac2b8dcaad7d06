"""The process that collects elsewhere, which obeys the orders of `remote`."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.collection.collector import RolloutCollector
from lightning_ppo.envs.changes import Change
from lightning_ppo.rollout.shapes import Rollout
from lightning_ppo.speed import switch
from lightning_ppo.support.errors import EnvironmentFault, UserError, described
from lightning_ppo.support.packing import from_bytes, to_bytes
from lightning_ppo.support.randomness import get_random_state, set_random_state
from lightning_ppo.support.tree import tree_map

END = "end"
"""The order to stop."""


ORPHAN_GRACE = 2.0
"""Seconds that it has for that when the process that started it is gone."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The trainer's to handle."""


class Surroundings(NamedTuple):
    """Settings of this process that the other one takes over."""

    start_method: str
    """How processes of environments are started; that of a spawned process would be to spawn."""
    threads: int
    dtype: torch.dtype
    autocast: torch.dtype | None
    """Precision of autocast on the CPU, None where it is off."""
    shortcuts: bool
    """Whether those of `speed` are taken."""


def tensors_of(policy: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a copy of a policy in another process needs."""
    yield from policy.parameters()
    yield from policy.buffers()


def to_plain(rollout: Rollout, convert: Callable[[Tensor], Any]) -> dict[str, Any]:
    """Return the fields of a rollout, its tensors converted."""
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    return tree_map(lambda x: convert(x) if isinstance(x, Tensor) else x, values)


def work(pipe: Connection, make: Callable[[], RolloutCollector], surroundings: Surroundings) -> None:
    """Obey orders until the last one, or until the pipe is closed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_outlive, daemon=True).start()
    multiprocessing.set_start_method(surroundings.start_method, force=True)
    torch.set_num_threads(surroundings.threads)
    torch.set_default_dtype(surroundings.dtype)
    switch.turn(surroundings.shortcuts)
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


def _outlive() -> None:
    """End this process soon after the one that started it, even where an environment hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(ORPHAN_GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


class _Worker:
    """Makes the collector at the first order, so that whatever fails is an answer."""

    def __init__(self, make: Callable[[], RolloutCollector]) -> None:
        self.make = make
        self.collector: RolloutCollector | None = None

    def obey(self, order: str, argument: Any) -> tuple[Any, Exception | None]:
        """Return the answer to an order, or the error."""
        try:
            self.collector = self.collector or self.make()
            return getattr(self, order)(self.collector, argument), None
        except UserError as error:
            return None, error
        except (Exception, SystemExit) as error:
            return None, EnvironmentFault(f"the process that collects failed: {described(error)}")

    def collect(
        self, collector: RolloutCollector, argument: tuple[int, list[np.ndarray], list[Change]]
    ) -> dict[str, Any]:
        version, weights, changes = argument
        collector.change(changes)
        with torch.no_grad():
            for own, learnt in zip(tensors_of(collector.policy), weights, strict=True):
                own.copy_(torch.from_numpy(learnt))
        collector.policy.version = version
        return to_plain(collector.collect(), Tensor.numpy)

    def save(self, collector: RolloutCollector, argument: None) -> bytes | None:
        state = collector.state_dict()
        return None if state is None else to_bytes({**state, "random": get_random_state()})

    def load(self, collector: RolloutCollector, state: bytes) -> str:
        content = from_bytes(state)
        reason = collector.load_state_dict(content)
        if "random" in content:  # not where it was collected in the trainer's process
            set_random_state(content["random"])
        return reason

    def close(self) -> None:
        """Close the environments."""
        if self.collector is not None:
            self.collector.close()
