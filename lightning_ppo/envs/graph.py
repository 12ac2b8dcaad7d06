"""Graphs of Python objects as plain data: who refers to whom is kept, cycles included.

The content of each named value is a chunk: `[root, nodes]`, terms of JSON in which `["r", n]` refers to a node of the
chunk and `["x", chunk, n]` to one of another chunk. Arrays stay arrays. Reading and writing follow references with a
queue, so no depth is too deep, and nothing that a chunk names is ever called.
"""

import copyreg
import enum
import json
import logging
import random
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from lightning_ppo.envs.native import Unreadable, is_renderer, model_checksum, native_restore, native_state
from lightning_ppo.random_state import restore_generator

_CONSTANT = (
    *(gymnasium.Space, EnvSpec, np.dtype, torch.dtype, torch.device, logging.Logger, re.Pattern),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
)

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_SCALARS = {type(None), bool, int, float, str}
_MANY = 16
"""Items from which a list of like items is written as columns."""


@dataclass
class Chunk:
    """The content of one named value."""

    nodes: list[Any] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    """Chunks that it refers to."""
    text: str = ""

    def same_as(self, other: "Chunk") -> bool:
        """Return whether both hold the same."""
        return (
            self.text == other.text
            and len(self.arrays) == len(other.arrays)
            and all(map(_same_array, self.arrays, other.arrays))
        )


def _same_array(one: Any, other: Any) -> bool:
    return one is other or (one.dtype == other.dtype and np.array_equal(as_bytes(one), as_bytes(other)))


def as_bytes(array: Any) -> np.ndarray:
    """Return what an array or a tensor holds as a flat array of bytes."""
    if isinstance(array, Tensor):
        return array.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    return array.ravel(order="K" if array.flags.forc else "C").view(np.uint8)


def linked(keys: Iterable[str], chunks: Mapping[str, Chunk]) -> set[str]:
    """Return `keys` with all chunks that they refer to, or that refer to them, over any number of steps."""
    neighbours: dict[str, set[str]] = defaultdict(set)
    for key, chunk in chunks.items():
        for other in chunk.links:
            neighbours[key].add(other)
            neighbours[other].add(key)
    found, left = set(keys), list(keys)
    while left:
        new = neighbours[left.pop()] - found
        found |= new
        left += new
    return found


# ---------------------------------------------------------------- writing


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
        self._chunk.text = json.dumps([root, self._chunk.nodes], separators=(",", ":"))
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
            return ["constant", _signature(value)]
        checksum = model_checksum(value)
        if checksum is not None:
            return ["model", checksum]
        if isinstance(value, enum.Enum):
            self.classes.add(kind)
            return ["enum", _path(kind), value.name]
        if kind is tuple:
            return ["tuple", [self._term(v, where) for v in value]]
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            self.classes.add(kind)
            return ["named", _path(kind), [self._term(v, where) for v in value]]
        if kind is frozenset:
            return ["frozenset", [self._term(v, where) for v in value]]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is bytes:
            return ["bytes", value.hex()]
        if kind is range:
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, np.generic) and value.dtype.kind in "biufcmMSU":
            return ["scalar", value.dtype.str, value.tobytes().hex()]
        return self._reference(value, where)

    def _is_known(self, owner: Any) -> bool:
        return id(owner) in self._layers or _attributes(owner) is not None

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
        if kind in _DICTS:
            factory = value.default_factory if kind is defaultdict else None
            if factory is not None and factory not in _FACTORIES.values():
                raise Unreadable(f"{where} is a defaultdict of {factory!r}, which is not plain data")
            names = [kind.__name__, None if factory is None else factory.__name__]
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
        attributes = vars(value) if kind is types.SimpleNamespace else _attributes(value)
        if attributes is None:
            raise Unreadable(f"{where} is a {kind.__name__}, which is not plain data")
        self.classes.add(kind)
        return ["object", _path(kind), {k: self._term(v, f"{where}.{k}") for k, v in attributes.items()}]

    def _keep(self, array: Any) -> int:
        self._chunk.arrays.append(array)
        return len(self._chunk.arrays) - 1

    def _array(self, value: np.ndarray, where: str) -> Any:
        if value.dtype == object:
            self._kept.append(flat := value.ravel().tolist())
            return ["objects", value.shape, [self._term(v, where) for v in flat]]
        if value.dtype.hasobject or value.dtype.names:
            raise Unreadable(f"{where} is an array of records, which is not plain data")
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
        if kind in (bool, int, float) or issubclass(kind, np.number | np.bool_):
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
        shape = shapes.pop()
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
        if dtype.hasobject or dtype.names or not all(v.dtype == dtype and v.shape == shape for v in values):
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


_DICTS = {dict: dict, OrderedDict: OrderedDict, defaultdict: defaultdict, Counter: Counter}
_FACTORIES = {factory.__name__: factory for factory in (list, dict, set, int, float, deque)}


def is_constant(value: Any) -> bool:
    """Return whether a value is taken from the environment that is restored, not from the one that was saved."""
    return isinstance(value, _CONSTANT) or is_renderer(value)


def _signature(value: Any) -> str:
    return _path(value if isinstance(value, type | types.FunctionType) else type(value))


def _path(named: Any) -> str:
    return f"{named.__module__}:{named.__qualname__}"


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object of a plain class: one that keeps nothing but attributes."""
    cls = type(value)
    plain = (
        cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ is object.__reduce__
        and cls.__getstate__ is object.__getstate__
        and not any(hasattr(cls, name) for name in ("__setstate__", "__getnewargs__", "__getnewargs_ex__", "__del__"))
        and cls.__module__.partition(".")[0] not in sys.stdlib_module_names
    )
    if not plain:
        return None
    try:
        make, arguments, state, *items = value.__reduce_ex__(2)
    except TypeError:  # of a class written in C
        return None
    if make is not copyreg.__newobj__ or arguments != (cls,) or any(item is not None for item in items):
        return None
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {**(own or {}), **(slots or {})}


# ---------------------------------------------------------------- reading


class GraphReader:
    """Makes values of chunks.

    Args:
        chunks: Of `GraphWriter`: `[root, nodes]` and arrays, by name.
        layers: The environments and wrappers here, by number.
        currents: The values here, by name: constants, devices and generators are taken from them.
        classes: Those whose objects may be made; others only from `packages`.
        packages: Names of packages that have more.
    """

    def __init__(
        self,
        chunks: Mapping[str, tuple[list[Any], Sequence[Any]]],
        layers: Mapping[int, Any],
        currents: Mapping[str, Any],
        classes: Iterable[type],
        packages: Iterable[str],
    ) -> None:
        self._chunks, self._layers, self._currents = chunks, layers, currents
        self._classes = {_path(cls): cls for cls in classes}
        self._packages = set(packages)
        self._made: dict[tuple[str, int], Any] = {}
        self._pending: deque[Callable[[], None]] = deque()
        self._hashed: list[Callable[[], None]] = []
        self.effects: list[Callable[[], None]] = []
        """What is left to be done to objects that are not replaced, such as generators."""

    def read(self) -> dict[str, Any]:
        """Return the values by name; nothing is changed before `effects` are called.

        Raises:
            Unreadable: If a value cannot be made here.
        """
        values = {}
        for key, ((root, _), _) in self._chunks.items():
            values[key] = self._value(root, key, self._currents.get(key))
            while self._pending:
                self._pending.popleft()()
        for put in self._hashed:  # once the objects in them have the attributes that they are hashed by
            put()
        return values

    def _value(self, term: Any, key: str, now: Any) -> Any:
        if not isinstance(term, list):
            return term
        tag, *content = term
        if tag == "r":
            return self._object(key, content[0], now)
        if tag == "x":
            return self._object(content[0], content[1], now)
        if tag == "layer":
            return self._layers[content[0]]
        if tag == "method":
            owner = self._value(content[0], key, getattr(now, "__self__", None))
            if not isinstance(getattr(type(owner), content[1], None), types.FunctionType):
                raise Unreadable(f"{type(owner).__name__} has no method {content[1]}")
            return types.MethodType(getattr(type(owner), content[1]), owner)
        if tag == "constant":
            if not is_constant(now) or _signature(now) != content[0]:
                raise Unreadable(f"{self._name(key)} needs {content[0]}, which is not there after a reset")
            return now
        if tag == "model":
            if model_checksum(now) != content[0]:
                raise Unreadable(f"{self._name(key)} is another MuJoCo model, or one that was written to")
            return now
        if tag == "enum":
            return self._class(content[0], enum.Enum, now)[content[1]]
        if tag in ("tuple", "frozenset"):
            values = self._values(content[0], key, now)
            return tuple(values) if tag == "tuple" else frozenset(values)
        if tag == "named":
            cls = self._class(content[0], tuple, now)
            return tuple.__new__(cls, self._values(content[1], key, now))
        if tag == "scalar":
            return np.frombuffer(bytes.fromhex(content[1]), content[0])[0]
        makers = {"complex": complex, "range": range, "bytes": bytes.fromhex}
        return makers[tag](*content)

    def _values(self, terms: list[Any], key: str, now: Any) -> list[Any]:
        present = list(now) if isinstance(now, list | tuple | deque) else []
        present += [None] * (len(terms) - len(present))
        return [self._value(term, key, one) for term, one in zip(terms, present, strict=False)]

    def _object(self, key: str, number: int, now: Any) -> Any:
        if (key, number) not in self._made:
            if key not in self._chunks:
                raise Unreadable(f"{self._name(key)} is not in the checkpoint")
            (_, nodes), arrays = self._chunks[key]
            node = nodes[number]
            if not isinstance(node, list):  # an item of a list of many, which comes first
                self._value(self._chunks[key][0][0], key, self._currents.get(key))
                while (key, number) not in self._made and self._pending:
                    self._pending.popleft()()
                return self._made[key, number]
            self._made[key, number] = self._make(node, key, number, arrays, now)
        return self._made[key, number]

    def _make(self, node: list[Any], key: str, number: int, arrays: Sequence[Any], now: Any) -> Any:
        tag, *content = node
        if tag == "array":
            return _to_array(arrays[content[0]], *content[1:])
        if tag == "tensor":
            device = now.device if isinstance(now, Tensor) else arrays[content[0]].device
            return arrays[content[0]].to(device, copy=True)
        if tag == "objects":
            array = np.empty(content[0], dtype=object)
            self._pending.append(lambda: self._fill_array(array, content[1], key, now))
            return array
        if tag in ("list", "deque"):
            new: Any = [] if tag == "list" else deque(maxlen=content[0])
            self._pending.append(lambda: new.extend(self._items(content[-1], key, arrays, now)))
            return new
        if tag == "set":
            members: set[Any] = set()
            self._pending.append(lambda: self._later(members.update, self._values(content[0], key, now)))
            return members
        if tag in ("dict", "items"):
            mapping = _new_dict(content[0], content[1])
            present = now if isinstance(now, dict) else {}
            fill = self._fill_dict if tag == "dict" else self._fill_items
            self._pending.append(lambda: fill(mapping, content[2], key, present))
            return mapping
        if tag == "bytearray":
            return bytearray.fromhex(content[0])
        if tag in ("generator", "random_state", "random"):
            return self._numpy_generator(tag, content[0], key, now)
        if tag == "torch_generator":
            if not isinstance(now, torch.Generator):
                raise Unreadable(f"a generator of {self._name(key)} is not there after a reset")
            self.effects.append(lambda: restore_generator(now, arrays[content[0]], "an environment draws"))
            return now
        if tag == "object":
            return self._instance(content[0], content[1], key, now)
        restore = native_restore(tag, now)
        if restore is None:
            raise Unreadable(f"{self._name(key)} is no simulator ({tag}) after a reset")
        self.effects.append(lambda: restore({name: arrays[k] for name, k in content[0].items()}))
        return now

    def _fill_array(self, array: np.ndarray, terms: list[Any], key: str, now: Any) -> None:
        present = now.ravel().tolist() if isinstance(now, np.ndarray) else None
        for i, value in enumerate(self._values(terms, key, present)):
            array.flat[i] = value

    def _later(self, put: Callable[[Any], Any], values: list[Any]) -> None:
        self._hashed.append(lambda: put(values))

    def _fill_dict(self, mapping: Any, terms: dict[str, Any], key: str, present: Any) -> None:
        for name, term in terms.items():
            dict.__setitem__(mapping, name, self._value(term, key, present.get(name)))

    def _fill_items(self, mapping: Any, terms: list[Any], key: str, present: Any) -> None:
        names = [self._value(k, key, None) for k, _ in terms]
        scalars = all(not isinstance(k, list) or k[0] == "scalar" for k, _ in terms)
        values = [
            self._value(v, key, present.get(name) if scalars else None)
            for name, (_, v) in zip(names, terms, strict=True)
        ]

        def put(items: list[Any]) -> None:
            for name, value in items:
                dict.__setitem__(mapping, name, value)

        self._later(put, list(zip(names, values, strict=True)))

    def _items(self, items: list[Any], key: str, arrays: Sequence[Any], now: Any) -> list[Any]:
        tag, *content = items
        if tag == "terms":
            return self._values(content[0], key, now)
        if tag == "numbers":
            numbers = _numpy(arrays[content[1]])
            return list(numbers) if content[0] == "scalar" else numbers.tolist()
        if tag == "stacked":
            size, first, k, dtype, shape = content
            rows = [row.copy() for row in _to_array(arrays[k], dtype, shape, "C")]
            self._made.update(((key, first + i), row) for i, row in enumerate(rows))
            return rows
        kind, names, size, first, columns = content
        if kind == "tuple":
            return list(zip(*(self._items(c, key, arrays, None) for c in columns), strict=True)) or [()] * size
        shells: list[Any] = [{} if kind == "dict" else [] for _ in range(size)]
        self._made.update(((key, first + i), shell) for i, shell in enumerate(shells))
        present = list(now) if isinstance(now, list | deque) else []
        present += [None] * (size - len(present))
        for j, column in enumerate(columns):
            name = names[j] if kind == "dict" else j
            here = [_at(one, name) for one in present[:size]] if column[0] != "numbers" else None
            for shell, value in zip(shells, self._items(column, key, arrays, here), strict=True):
                if kind == "dict":
                    shell[name] = value
                else:
                    shell.append(value)
        return shells

    def _numpy_generator(self, tag: str, term: Any, key: str, now: Any) -> Any:
        kind = {"generator": np.random.Generator, "random_state": np.random.RandomState, "random": random.Random}[tag]
        found = [now if type(now) is kind else None]  # others may hold the same generator

        def name_of(state: dict[str, Any]) -> str:
            if state["bit_generator"] not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
                raise Unreadable(f"{self._name(key)} has an unknown generator {state['bit_generator']}")
            return state["bit_generator"]

        state = self._value(term, key, None)
        while self._pending:
            self._pending.popleft()()
        if tag == "random":
            generator = found[0] or random.Random()
            self.effects.append(lambda: generator.setstate(state))
        elif tag == "random_state":
            generator = found[0] or np.random.RandomState()
            self.effects.append(lambda: generator.set_state(state))
        else:
            generator = found[0]
            if generator is None or type(generator.bit_generator).__name__ != name_of(state):
                generator = np.random.Generator(getattr(np.random, name_of(state))())
            self.effects.append(lambda: setattr(generator.bit_generator, "state", state))
        return generator

    def _instance(self, path: str, terms: dict[str, Any], key: str, now: Any) -> Any:
        if path == _path(types.SimpleNamespace):
            new: Any = types.SimpleNamespace()
        else:
            new = object.__new__(self._class(path, object, now))
            if _attributes(new) is None:
                raise Unreadable(f"{path} is no plain class")
        present = (_attributes(now) or {}) if type(now) is type(new) else {}

        def fill() -> None:
            for name, term in terms.items():
                value = self._value(term, key, present.get(name))
                if isinstance(getattr(type(new), name, None), types.MemberDescriptorType):  # a slot
                    object.__setattr__(new, name, value)
                else:
                    vars(new)[name] = value

        self._pending.append(fill)
        return new

    def _class(self, path: str, base: type, now: Any) -> Any:
        """Return the class of that path: one of objects that are there, or of the packages of the environment."""
        cls = type(now) if _path(type(now)) == path else self._classes.get(path)
        if cls is None:
            module, _, name = path.partition(":")
            if module.partition(".")[0] not in self._packages:
                raise Unreadable(f"{path} is not of the environment's packages")
            cls = sys.modules.get(module)
            for part in name.split("."):
                cls = getattr(cls, part, None)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise Unreadable(f"there is no class {path}")
        return cls

    def _name(self, key: str) -> str:
        layer, _, attribute = key.partition(".")
        return f"{type(self._layers[int(layer)]).__name__}.{attribute}"


def _at(value: Any, key: Any) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    return value[key] if isinstance(value, list) and key < len(value) else None


def _new_dict(kind: str, factory: str | None) -> Any:
    if kind == "defaultdict":
        return defaultdict(None if factory is None else _FACTORIES[factory])
    return {cls.__name__: cls for cls in _DICTS}[kind]()


def _numpy(content: Any) -> np.ndarray:
    return content.numpy() if isinstance(content, Tensor) else content


def _to_array(content: Any, dtype: str, shape: Sequence[int], order: str) -> np.ndarray:
    array = _numpy(content)
    if array.dtype.str != dtype:
        array = np.frombuffer(array.tobytes("A"), dtype)
    return np.array(array.reshape(shape, order=order), order=order)
