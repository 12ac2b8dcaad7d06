"""Collectives that are the identity where there is one process."""

import atexit
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_ppo.support.errors import ConfigError, EnvironmentFault, UserError
from lightning_ppo.support.packing import from_bytes, to_bytes

Reduce = Callable[[Tensor], Tensor]
"""What a tensor is over all ranks: `sum_over_ranks`, `mean_over_ranks`, or the tensor itself for one rank alone."""


class Reductions(Protocol):
    """Another way than the process group to reduce tensors over all ranks."""

    def takes(self, tensor: Tensor) -> bool:
        """Return whether `reduce` is for tensors like this."""

    def reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Return the tensors of all ranks, combined, the same bits on each."""

    def close(self) -> None:
        """Release what connects the ranks."""


_shared: Reductions | None = None
"""Reduces the tensors that it takes, see `join_ranks`."""


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def join_ranks(connect: Callable[[], Reductions | None] | None = None) -> None:
    """Make ready for what follows in this process group; all ranks call it, again where there is another group.

    Args:
        connect: Returns what reduces tensors from now on; None leaves them all to the process group.
    """
    global _shared
    _release()
    atexit.unregister(_leave)
    if world_size() == 1:
        return
    # gloo's threads, left running, may abort the process when the interpreter ends
    atexit.register(_leave)
    _shared = None if connect is None else connect()


def _release() -> None:
    global _shared
    if _shared is not None:
        _shared.close()
    _shared = None


def _leave() -> None:
    _release()
    if dist.is_initialized():
        dist.destroy_process_group()


def _over_ranks(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if world_size() == 1:
        return tensor
    if _shared is not None and _shared.takes(tensor):
        return _shared.reduce(tensor, operation)
    reduced = tensor.clone()
    dist.all_reduce(reduced, operation)
    return reduced


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, the same bits on each; the argument stays as it is."""
    return _over_ranks(tensor, dist.ReduceOp.SUM)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all ranks, the same bits on each; the argument stays as it is."""
    return sum_over_ranks(tensor) / world_size()


def average_in_place(tensor: Tensor) -> None:
    """Replace a tensor by its mean over all ranks, the same bits on each; no second one of its size is made."""
    if world_size() == 1:
        return
    if _shared is not None and _shared.takes(tensor):
        tensor.copy_(_shared.reduce(tensor, dist.ReduceOp.SUM))
    else:
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    tensor.div_(world_size())


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of `tensor` over all ranks; the argument stays as it is."""
    return _over_ranks(tensor, dist.ReduceOp.MAX)


def raise_together(error: UserError | None, device: torch.device, digest: int = 0) -> None:
    """Raise on every rank if there is an error on any of them, so that none waits for another; call it on all ranks.

    Args:
        error: What went wrong on this rank, if anything did.
        device: One that the ranks can exchange tensors on.
        digest: Of what the ranks have changed in their environments, which must be the same.

    Raises:
        UserError: Of the type of `error`, or EnvironmentFault where only other ranks have one.
        ConfigError: If the digests differ.
    """
    told = [0 if error is None else rank() + 1, digest, -digest]
    # one rank has nobody to ask, and need not wait for its device
    failed, most, least = told if world_size() == 1 else max_over_ranks(torch.tensor(told, device=device)).tolist()
    if error is not None:
        raise type(error)(f"rank {rank()}: {error}" if world_size() > 1 else str(error)) from error
    if failed:
        raise EnvironmentFault(f"an environment of rank {failed - 1} failed, see its message; this rank stops, too")
    if most != -least:
        raise ConfigError(
            "datamodule.set_attr, datamodule.call: the ranks have not asked for the same; call them on every rank with "
            "the same values (what is logged is the same everywhere, module.recent_returns are not)"
        )


def gather_objects(value: Any) -> list[Any]:
    """Return one object of plain data and tensors of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, to_bytes(value))
    return [from_bytes(content) for content in gathered]


def print_once(message: str) -> None:
    """Print on rank 0."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)(message)
