"""Plain data and tensors as bytes, and with few large tensors in place of many small ones.

Saving costs about 50 microseconds for each tensor, and the state of environments has thousands of small ones.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGE = 4096
"""Bytes from which equal tensors are stored once."""


def to_bytes(data: Any) -> bytes:
    """Return plain data and tensors as bytes; pickling fails for tensors that view byte storages."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> Any:
    """Return what `to_bytes` was given, its tensors on the CPU."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def pack(data: Any) -> dict[str, Any]:
    """Return nested dicts, lists and tuples with their CPU tensors joined, one per data type.

    In its place, a tensor leaves a tuple of its data type and sizes; one that equals the k-th of its data type leaves
    -1 and k before its sizes.
    """
    found: dict[torch.dtype, list[Tensor]] = {}
    numbers: dict[tuple[torch.dtype, bytes], int] = {}
    sizes: Counter[tuple[torch.dtype, int]] = Counter()

    def count(leaf: Any) -> None:
        if isinstance(leaf, Tensor):
            sizes[leaf.dtype, leaf.numel()] += 1

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.device.type != "cpu":
            return leaf
        flat, tensors = leaf.detach().reshape(-1), found.setdefault(leaf.dtype, [])
        if leaf.nbytes >= LARGE and sizes[leaf.dtype, leaf.numel()] > 1:
            content = hashlib.blake2b(flat.contiguous().view(torch.uint8).numpy().data).digest()
            number = numbers.setdefault((leaf.dtype, content), len(tensors))
            if number < len(tensors):
                return (leaf.dtype, -1, number, *leaf.shape)
        tensors.append(flat)
        return (leaf.dtype, *leaf.shape)

    _replace(data, count)
    contents = _replace(data, take)
    return {"contents": contents, "tensors": [torch.cat(tensors) for tensors in found.values()]}


def unpack(packed: dict[str, Any]) -> Any:
    """Return what `pack` was given."""
    left = {tensor.dtype: tensor for tensor in packed["tensors"]}
    taken: dict[torch.dtype, list[Tensor]] = {dtype: [] for dtype in left}

    def put_back(leaf: Any) -> Any:
        if not _is_place(leaf):
            return leaf
        dtype, *shape = leaf
        if shape[:1] == [-1]:
            return taken[dtype][shape[1]].clone().view(shape[2:])
        size = torch.Size(shape).numel()
        tensor, left[dtype] = left[dtype][:size], left[dtype][size:]
        taken[dtype].append(tensor)
        return tensor.clone().view(shape)

    return _replace(packed["contents"], put_back)


def _is_place(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and isinstance(value[0], torch.dtype)


def _replace(data: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(data, dict):
        return {key: _replace(value, function) for key, value in data.items()}
    if isinstance(data, list):
        return [_replace(value, function) for value in data]
    if isinstance(data, tuple) and not _is_place(data):
        return tuple(_replace(value, function) for value in data)
    return function(data)
