"""Processes that begin with torch, Lightning and this package imported.

They are forked from a server that has nothing but these imports, which a fork of the process that tests would not be.
A new interpreter takes seconds to come as far. Where that is what a test is about, it starts one.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, reduction
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.collection import remote

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("pytest", "gymnasium.vector", "pytorch_lightning", "lightning_ppo.cli.train", "lightning_ppo.run.training"),
        *("lightning_ppo.collection.datamodule", "lightning_ppo.collection.processes", "lightning_ppo.update.ppo"),
    ]
)


class _Surroundings:
    """Environment variables and streams, as a new interpreter would have them; takes effect when it is unpickled."""

    def __init__(self, environment: dict[str, str], output: int, errors: int) -> None:
        self.environment, self.output, self.errors = environment, output, errors

    def __reduce__(self) -> tuple[Callable, tuple]:
        streams = reduction.DupFd(self.output), reduction.DupFd(self.errors)
        return _take_over, (self.environment, *streams, remote.multiprocessing is multiprocessing_of_remote)


def _take_over(environment: dict[str, str], output: Any, errors: Any, preloaded: bool) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(output.detach(), 1)
    os.dup2(errors.detach(), 2)
    # Lightning reads it when it is imported
    names = [name for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in environment]
    rank_zero_only.rank = int(environment[names[0]]) if names else 0
    if preloaded:
        remote.multiprocessing = multiprocessing_of_remote
        # processes that are started from here are forked from the same server
        forkserver._forkserver.ensure_running = lambda: None


def _work(surroundings: None, function: Callable, *args: Any) -> None:
    try:
        sys.exit(function(*args))
    finally:
        atexit._run_exitfuncs()


class Process(_context.Process):
    """A `multiprocessing.Process` of the server, with the environment and the streams of this process.

    What `target` returns is the exit code.
    """

    def __init__(
        self, target: Callable, args: Sequence[Any] = (), output: int = 1, errors: int = 2, **env: str
    ) -> None:
        # first, so that it is unpickled before the modules that look at the environment are imported
        surroundings = _Surroundings({**os.environ, **env}, output, errors)
        super().__init__(target=_work, args=(surroundings, target, *args))


multiprocessing_of_remote = SimpleNamespace(
    get_start_method=multiprocessing.get_start_method,
    get_context=lambda method: SimpleNamespace(Process=Process, Pipe=_context.Pipe),
)
"""Stands in for `multiprocessing` where processes that collect are started."""


class Command:
    """A function in a process of its own, called as a program is: with arguments, an exit code and what it prints."""

    def __init__(self, function: Callable, *args: Any, **environment: str) -> None:
        self._open = TemporaryDirectory()
        self._paths = [Path(self._open.name) / name for name in ("out", "err")]
        numbers = [os.open(path, os.O_RDWR | os.O_CREAT) for path in self._paths]
        self._process = Process(_in_folder, (os.getcwd(), function, *args), *numbers, **environment)
        self._process.start()
        self.pid = self._process.pid
        for number in numbers:
            os.close(number)

    def poll(self) -> int | None:
        """Return the exit code of a process that has ended, None of one that has not."""
        return self._process.exitcode

    def wait(self, timeout: float) -> tuple[int, str, str]:
        """Return exit code, output and errors; kill the process if it takes longer than `timeout` seconds."""
        self._process.join(timeout)
        self.kill()
        with self._open:
            return self._process.exitcode, *[path.read_text() for path in self._paths]

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def run_script(path: Path, *arguments: str) -> None:
    """Do what the interpreter does with a script and its arguments."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _in_folder(folder: str, function: Callable, *args: Any) -> Any:
    os.chdir(folder)
    return function(*args)


def as_ranks(world: int) -> list[dict[str, str]]:
    """Return what torchrun sets in the environment of each of several ranks on this machine; nothing for one alone."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def run_ranks(world: int, function: Callable, *args: Any, timeout: float = 120.0) -> None:
    """Call a function on each of `world` ranks; where one fails, end the others.

    Raises:
        AssertionError: If a rank fails or takes longer than `timeout` seconds, with what all of them printed.
    """
    ranks = [Command(function, *args, **environment) for environment in as_ranks(world)]
    deadline = time.monotonic() + timeout
    while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < deadline:
        time.sleep(0.02)
    ended = [rank.wait(0.0) for rank in ranks]
    said = "\n".join(f"rank {number} {code}: {ended[number][2][-3000:]}" for number, code in enumerate(codes))
    assert codes == [0] * world, said
