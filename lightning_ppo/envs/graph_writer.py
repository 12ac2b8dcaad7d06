"""Values as chunks of plain data (see `graph`)."""

import enum
import json
import random
import types
from collections import defaultdict, deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.envs.graph import DICTS, FACTORIES, Chunk, is_constant, path_of, plain_attributes, signature
from lightning_ppo.envs.native import Unreadable, model_checksum, native_state

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_SCALARS = {type(None), bool, int, float, str}
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_MANY = 16
"""Items from which a list of like items is written as columns."""


class GraphWriter:
    """Writes values as chunks, each object once.

    Attributes:
        chunks: By name.
        classes: Of the objects that were met.

    Args:
        layers: Numbers of environments and wrappers, by their id; values may refer to them, and are not followed there.
        generators: Whether to write the states of random generators.
    """

    def __init__(self, layers: Mapping[int, int], generators: bool = True) -> None:
        self.chunks: dict[str, Chunk] = {}
        self.classes: set[type] = set()
        self._layers = layers
        self._generators = generators
        self._seen: dict[int, tuple[str, int]] = {}
        self._kept: list[Any] = []
        self._memory: list[tuple[int, int, int, str]] = []
        self._key, self._chunk = "", Chunk()
        self._pending: deque[tuple[Any, int, str]] = deque()

    def add(self, key: str, value: Any, where: str) -> Chunk:
        """Write a value as the chunk `key`; `where` names it in the reason if that cannot be done.

        Raises:
            Unreadable: If something in it is not plain data.
        """
        self._key, self._chunk = key, Chunk()
        try:
            root = self._term(value, where)
            while self._pending:
                item, number, path = self._pending.popleft()
                self._chunk.nodes[number] = self._node(item, number, path)
        except BaseException:
            self._pending.clear()
            self._seen = {name: place for name, place in self._seen.items() if place[0] != key}
            raise
        self._chunk.text = _to_json([root, self._chunk.nodes])
        self._chunk.nodes = []
        self.chunks[key] = self._chunk
        return self._chunk

    def check_memory(self) -> None:
        """Raise Unreadable where two arrays share memory, which what is restored would not."""
        spans = sorted(self._memory)
        for (_, end, size, name), (start, _, other_size, other) in pairwise(spans):
            if start < end:
                whole, part = (name, other) if size > other_size else (other, name)
                raise Unreadable(f"{part} shares memory with {whole}")

    def _term(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if id(value) in self._layers:
            return ["layer", self._layers[id(value)]]
        if kind is types.MethodType and self._is_known(value.__self__):
            return ["method", self._term(value.__self__, where), value.__func__.__name__]
        if is_constant(value):
            return ["constant", signature(value)]
        checksum = model_checksum(value)
        if checksum is not None:
            return ["model", checksum]
        if isinstance(value, enum.Enum):
            self.classes.add(kind)
            return ["enum", path_of(kind), value.name]
        if kind is tuple:
            return ["tuple", [self._term(v, where) for v in value]]
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            self.classes.add(kind)
            return ["named", path_of(kind), [self._term(v, where) for v in value]]
        if kind is frozenset:
            return ["frozenset", [self._term(v, where) for v in value]]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is bytes:
            return ["bytes", value.hex()]
        if kind is range:
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, np.generic) and value.dtype.kind in "biufcmMSU" and value.dtype.char not in "gG":
            return ["scalar", value.dtype.str, value.tobytes().hex()]
        return self._reference(value, where)

    def _is_known(self, owner: Any) -> bool:
        return id(owner) in self._layers or plain_attributes(owner) is not None

    def _reference(self, value: Any, where: str) -> Any:
        place = self._seen.get(id(value))
        if place is None:
            place = self._seen[id(value)] = self._key, len(self._chunk.nodes)
            self._chunk.nodes.append(None)
            self._kept.append(value)  # no other object may take its id
            self._pending.append((value, place[1], where))
        if place[0] == self._key:
            return ["r", place[1]]
        self._chunk.links.add(place[0])
        return ["x", *place]

    def _node(self, value: Any, number: int, where: str) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            return self._array(value, where)
        if kind is Tensor:
            return self._tensor(value, where)
        if kind is list or kind is deque:
            items = self._items(list(value), where)
            return ["list", items] if kind is list else ["deque", value.maxlen, items]
        if kind is set:
            return ["set", [self._term(v, where) for v in value]]
        if DICTS.get(kind.__name__) is kind:
            factory = value.default_factory if kind is defaultdict else None
            plain = next((name for name, known in FACTORIES.items() if factory is known), None)
            names = [kind.__name__, plain or self._term(factory, where)]
            if all(type(k) is str for k in value):
                return ["dict", *names, {k: self._term(v, f"{where}[{k!r}]") for k, v in value.items()}]
            items = [[self._term(k, where), self._term(v, f"{where}[{k!r}]")] for k, v in value.items()]
            return ["items", *names, items]
        if kind is bytearray:
            return ["bytearray", value.hex()]
        if isinstance(value, _GENERATORS) and not self._generators:
            return [kind.__name__]
        if isinstance(value, np.random.Generator):
            return ["generator", self._term(value.bit_generator.state, where)]
        if isinstance(value, np.random.RandomState):
            return ["random_state", self._term(value.get_state(legacy=False), where)]
        if kind is random.Random:
            return ["random", self._term(value.getstate(), where)]
        if isinstance(value, torch.Generator):
            return ["torch_generator", self._keep(value.get_state())]
        state = native_state(value)
        if state is not None:
            tag, content = state
            return [tag, {name: self._keep(array) for name, array in content.items()}]
        attributes = vars(value) if kind is types.SimpleNamespace else plain_attributes(value)
        if attributes is None:
            raise Unreadable(f"{where} is a {kind.__name__}, which is not plain data")
        self.classes.add(kind)
        return ["object", path_of(kind), {k: self._term(v, f"{where}.{k}") for k, v in attributes.items()}]

    def _keep(self, array: Any) -> int:
        self._chunk.arrays.append(array)
        return len(self._chunk.arrays) - 1

    def _array(self, value: np.ndarray, where: str) -> Any:
        if value.dtype == object:
            self._kept.append(flat := value.ravel().tolist())
            return ["objects", value.shape, [self._term(v, where) for v in flat]]
        if value.dtype.hasobject or value.dtype.names or value.dtype.char in "gG":
            raise Unreadable(f"{where} is an array of {value.dtype}, which is not plain data")
        self._note_memory(value, where)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        return ["array", self._keep(value), value.dtype.str, value.shape, order]

    def _note_memory(self, value: np.ndarray, where: str) -> None:
        if value.size:
            self._memory.append((*np.lib.array_utils.byte_bounds(value), value.nbytes, where))

    def _tensor(self, value: Tensor, where: str) -> Any:
        storage = value.untyped_storage()
        if storage.data_ptr() != 0:
            self._memory.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes(), value.nbytes, where))
        return ["tensor", self._keep(value.detach()), str(value.dtype), value.shape]

    # ------------------------------------------------------------ many like items as columns, at the speed of C

    def _items(self, values: list[Any], where: str) -> Any:
        """Return the items of a list: terms, or columns."""
        kinds = set(map(type, values))
        if len(values) >= _MANY and len(kinds) == 1:
            columns = self._column(values, kinds.pop(), where)
            if columns is not None:
                return columns
        elif kinds <= _SCALARS:
            return ["terms", values]
        return ["terms", [self._term(v, where) for v in values]]

    def _column(self, values: list[Any], kind: type, where: str) -> Any:
        if kind in (bool, int, float) or (issubclass(kind, np.number | np.bool_) and np.dtype(kind).char not in "gG"):
            return self._numbers(values, kind)
        if kind is np.ndarray:
            return self._stacked(values, where)
        if kind in _SCALARS:
            return ["terms", values]
        if kind not in (dict, list, tuple):
            return None
        shapes = set(map(tuple if kind is dict else len, values))
        if len(shapes) != 1 or (kind is not tuple and not self._are_new(values)):
            return None
        shape: Any = shapes.pop()
        if kind is dict and not all(type(k) is str for k in shape):
            return None
        first = self._claim(values) if kind is not tuple else 0
        keys = list(shape) if kind is dict else range(shape)
        columns = [self._items([row[k] for row in values], where) for k in keys]
        return ["rows", kind.__name__, list(shape) if kind is dict else None, len(values), first, columns]

    def _numbers(self, values: list[Any], kind: type) -> Any:
        dtype = {bool: np.dtype(np.bool_), int: np.dtype(np.int64), float: np.dtype(np.float64)}.get(kind)
        try:
            return ["numbers", kind.__name__ if dtype else "scalar", self._keep(np.array(values, dtype or kind))]
        except OverflowError:
            return ["terms", values]

    def _stacked(self, values: list[np.ndarray], where: str) -> Any:
        dtype, shape = values[0].dtype, values[0].shape
        if (
            dtype.hasobject
            or dtype.names
            or dtype.char in "gG"
            or not all(v.dtype == dtype and v.shape == shape for v in values)
        ):
            return None
        if not self._are_new(values) or not all(v.flags.c_contiguous for v in values):
            return None
        for value in values:
            self._note_memory(value, where)
        first = self._claim(values)
        stacked = np.stack(values)
        return ["stacked", len(values), first, self._keep(stacked), dtype.str, stacked.shape]

    def _are_new(self, values: list[Any]) -> bool:
        ids = set(map(id, values))
        return len(ids) == len(values) and self._seen.keys().isdisjoint(ids)

    def _claim(self, values: list[Any]) -> int:
        """Number objects as nodes that their list makes."""
        first = len(self._chunk.nodes)
        numbers = range(first, first + len(values))
        self._seen.update((id(v), (self._key, n)) for v, n in zip(values, numbers, strict=True))
        self._kept.append(values)
        self._chunk.nodes.extend([0] * len(values))
        return first
