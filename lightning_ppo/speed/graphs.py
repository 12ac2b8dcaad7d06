"""Functions of tensors recorded once as a CUDA graph and replayed: one launch instead of one for every kernel."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

WARM_UPS = 3
"""Calls before recording, in which libraries allocate and choose what must not change afterwards."""


def can_record(device: torch.device) -> bool:
    """Return whether functions on a device can be recorded."""
    return device.type == "cuda"


@contextmanager
def autocast_cache(enabled: bool) -> Iterator[None]:
    """Turn the cache on or off that keeps what autocast makes of weights in another precision, and forget its casts.

    Lightning turns it off. On, weights are cast once for many calls, which must not change them; off, a cast is part of
    what is recorded, where one made before would be read, and never done again, by every replay.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(enabled)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        if enabled:
            torch.clear_autocast_cache()


def record(function: Callable[..., Any], inputs: tuple[Any, ...], before: Any = None) -> tuple[Any, Any]:
    """Record a call of a function, and return the graph and the outputs that each of its replays writes over.

    Args:
        function: Waits for nothing on the device, and reads and writes only tensors that stay where they are.
        inputs: Its arguments, in memory that each replay reads again.
        before: An earlier graph of the function that will not be replayed again, whose memory is used.
    """
    device = next(leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        if before is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream), torch.random.fork_rng([device]):
                for _ in range(WARM_UPS):
                    function(*inputs)
            here.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = None if before is None else before.pool()
        try:
            # NCCL's watchdog, a thread of its own, may ask CUDA for something meanwhile
            with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                outputs = function(*inputs)
        except RuntimeError:
            torch.cuda.set_stream(here)  # a recording that fails leaves its own behind
            raise
    return graph, outputs


class Recorded:
    """A function whose first call records it and whose later calls replay that, with arguments of the same shapes.

    Arguments are copied to where the recording reads them, except those that are the very objects of the call before,
    which must not have changed. Results are the caller's own.

    Args:
        function: See `record`.
        reads: Tensors that it reads besides its arguments; where one of them has moved, it is recorded anew.
    """

    def __init__(self, function: Callable[..., Any], reads: Callable[[], Iterable[Tensor]] = tuple) -> None:
        self.function = function
        self.reads = reads
        self._places: list[int] = []
        self._graph: Any = None
        self._valid = False
        self._inputs: tuple[Any, ...] = ()
        self._latest: tuple[Any, ...] = ()
        self._outputs: Any = None

    def refresh(self) -> None:
        """Forget the recording if it reads memory that was given up; call it whenever that may have happened."""
        places = [tensor.data_ptr() for tensor in self.reads()]
        if places != self._places:
            self._places = places
            self.forget()

    def forget(self) -> None:
        """Record anew at the next call."""
        self._valid = False

    def release(self) -> None:
        """Let go of the arguments of the call before, which are in the recording's own memory."""
        self._latest = (None,) * len(self._latest)

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        if not self._valid:
            self._outputs = None
            self._inputs = tree_map(_own, arguments)
            with autocast_cache(False):
                self._graph, self._outputs = record(self.function, self._inputs, self._graph)
            self._valid = True
        else:
            for place, value, before in zip(self._inputs, arguments, self._latest, strict=True):
                if value is not before:
                    _copy(place, value)
        self._latest = arguments
        self._graph.replay()
        return tree_map(_own, self._outputs)


def _own(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _copy(place: Any, value: Any) -> None:
    """Copy the tensors of nested containers to those of others."""
    leaves, structure = tree_flatten(value)
    places, expected = tree_flatten(place)
    if structure != expected:
        raise ValueError(f"recorded with {expected}, called with {structure}")
    for there, here in zip(places, leaves, strict=True):
        if isinstance(there, Tensor):
            if (there.shape, there.dtype) != (here.shape, here.dtype):
                recorded, given = ((tuple(x.shape), x.dtype) for x in (there, here))
                raise ValueError(f"recorded with a tensor {recorded}, called with {given}")
            there.copy_(here, non_blocking=True)
