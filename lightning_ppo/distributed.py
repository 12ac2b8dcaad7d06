"""Collectives that are the identity where there is one process."""

import io
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


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


def gather_objects(value: Any) -> list[Any]:
    """Return one object of plain data and tensors of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    # torch's own pickling of tensors inside all_gather_object fails for views into byte storages
    buffer = io.BytesIO()
    torch.save(value, buffer)
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, buffer.getvalue())
    return [torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) for content in gathered]
