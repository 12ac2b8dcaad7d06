"""Values of chunks of plain data (see `graph`)."""

import enum
import random
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.envs.graph import DICTS, FACTORIES, is_constant, path_of, plain_attributes, set_attribute, signature
from lightning_ppo.envs.native import Unreadable, model_checksum, native_restore
from lightning_ppo.support.randomness import restore_generator

_GENERATORS: dict[str, Any] = {
    "generator": np.random.Generator,
    "random_state": np.random.RandomState,
    "random": random.Random,
}
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


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
        self._classes = {path_of(cls): cls for cls in classes}
        self._packages = set(packages)
        self._made: dict[tuple[str, int], Any] = {}
        self._pending: deque[Callable[[], None]] = deque()
        self._taken: set[int] = set()
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
            if not is_constant(now) or signature(now) != content[0]:
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
        makers: dict[str, Callable[..., Any]] = {"complex": complex, "range": range, "bytes": bytes.fromhex}
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
            mapping: Any = DICTS[content[0]]()
            if isinstance(mapping, defaultdict):
                factory = self._value(content[1], key, getattr(now, "default_factory", None))
                mapping.default_factory = FACTORIES[factory] if isinstance(factory, str) else factory
            present = now if isinstance(now, dict) else {}
            fill = self._fill_dict if tag == "dict" else self._fill_items
            self._pending.append(lambda: fill(mapping, content[2], key, present))
            return mapping
        if tag == "bytearray":
            return bytearray.fromhex(content[0])
        if tag in _GENERATORS:
            return self._generator(tag, content[0], key, now)
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
            mapping[name] = self._value(term, key, present.get(name))

    def _fill_items(self, mapping: Any, terms: list[Any], key: str, present: Any) -> None:
        names = [self._value(k, key, None) for k, _ in terms]
        scalars = all(not isinstance(k, list) or k[0] == "scalar" for k, _ in terms)
        values = [
            self._value(v, key, present.get(name) if scalars else None)
            for name, (_, v) in zip(names, terms, strict=True)
        ]

        def put(items: list[Any]) -> None:
            for name, value in items:
                mapping[name] = value

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

    def _generator(self, tag: str, term: Any, key: str, now: Any) -> Any:
        """Return the generator that is here, which others may hold, or a new one; its state is set in the end."""
        state, kind = self._value(term, key, None), _GENERATORS[tag]
        while self._pending:
            self._pending.popleft()()
        here = now if type(now) is kind and id(now) not in self._taken else None
        self._taken.add(id(here))
        if tag == "generator":
            name = state["bit_generator"]
            if name not in _BIT_GENERATORS:
                raise Unreadable(f"{self._name(key)} has an unknown generator, {name}")
            if here is None or type(here.bit_generator).__name__ != name:
                here = np.random.Generator(getattr(np.random, name)())
            self.effects.append(lambda: setattr(here.bit_generator, "state", state))
            return here
        generator = here or kind()
        put = generator.setstate if tag == "random" else generator.set_state
        self.effects.append(lambda: put(state))
        return generator

    def _instance(self, path: str, terms: dict[str, Any], key: str, now: Any) -> Any:
        if path == path_of(types.SimpleNamespace):
            new: Any = types.SimpleNamespace()
        else:
            new = object.__new__(self._class(path, object, now))
            if plain_attributes(new) is None:
                raise Unreadable(f"{path} is no plain class")
        present = (plain_attributes(now) or {}) if type(now) is type(new) else {}

        def fill() -> None:
            for name, term in terms.items():
                set_attribute(new, name, self._value(term, key, present.get(name)))

        self._pending.append(fill)
        return new

    def _class(self, path: str, base: type, now: Any) -> Any:
        """Return the class of that path: one of objects that are there, or of the packages of the environment."""
        cls: Any = type(now) if path_of(type(now)) == path else self._classes.get(path)
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


def _numpy(content: Any) -> np.ndarray:
    return content.numpy() if isinstance(content, Tensor) else content


def _to_array(content: Any, dtype: str, shape: Sequence[int], order: Any) -> np.ndarray:
    array = _numpy(content)
    if array.dtype.str != dtype:
        array = np.frombuffer(array.tobytes("A"), dtype)
    return np.array(array.reshape(tuple(shape), order=order), order=order)
