"""Nested dicts and tuples of tensors or arrays, the shape of Dict and Tuple observations."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply `function` to every leaf of nested dicts and tuples, and to the same leaf of others of that structure."""
    if isinstance(tree, dict):
        return {key: tree_map(function, value, *(o[key] for o in others)) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *leaves) for leaves in zip(tree, *others, strict=True))
    return function(tree, *others)


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested dicts and tuples, in order."""
    if isinstance(tree, dict | tuple):
        return [leaf for child in (tree.values() if isinstance(tree, dict) else tree) for leaf in tree_leaves(child)]
    return [tree]


def tree_store(arrays: Any, index: int, values: Any) -> Any:
    """Write values into one row of each array, and return the rows."""

    def store(array: Any, value: Any) -> Any:
        array[index] = value
        return array[index]

    return tree_map(store, arrays, values)


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows (B, ...) of a tensor (R, ...); channels of images that lie last in memory stay there."""
    if tensor.dim() == 4 and not tensor.is_contiguous():
        return tensor.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
    return tensor.index_select(0, rows)
