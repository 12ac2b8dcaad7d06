"""Collectives that are the identity where there is one process."""

import atexit
import io
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_ppo.errors import EnvironmentFault, UserError


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def leave_at_exit() -> None:
    """End the process group when the interpreter ends: gloo's threads, left running, may abort the process then."""
    atexit.unregister(_leave)
    if world_size() > 1:
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, the same bits on each; the argument stays as it is."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all ranks, the same bits on each; the argument stays as it is."""
    return sum_over_ranks(tensor) / world_size()


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of `tensor` over all ranks; the argument stays as it is."""
    if world_size() == 1:
        return tensor
    greatest = tensor.clone()
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return greatest


def raise_together(error: UserError | None, device: torch.device) -> None:
    """Raise on every rank if there is an error on any of them, so that none waits for another; call it on all ranks.

    Args:
        error: What went wrong on this rank, if anything did.
        device: One that the ranks can exchange tensors on.

    Raises:
        UserError: Of the type of `error`, or EnvironmentFault where only other ranks have one.
    """
    failed = int(max_over_ranks(torch.tensor([0 if error is None else rank() + 1], device=device)))
    if error is not None:
        raise type(error)(f"rank {rank()}: {error}" if world_size() > 1 else str(error)) from error
    if failed:
        raise EnvironmentFault(f"an environment of rank {failed - 1} failed, see its message; this rank stops with it")


def gather_objects(value: Any) -> list[Any]:
    """Return one object of plain data and tensors of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, packed(value))
    return [unpacked(content) for content in gathered]


def packed(value: Any) -> bytes:
    """Return an object of plain data and tensors as bytes; pickling fails for tensors that view byte storages."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """Return the object that `packed` was given, its tensors on the CPU."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
