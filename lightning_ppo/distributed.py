"""Collectives that are the identity where there is one process."""

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


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of `tensor` over all ranks; the argument stays as it is."""
    if world_size() == 1:
        return tensor
    greatest = tensor.clone()
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return greatest


def gather_objects(value: object) -> list:
    """Return one plain object of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
