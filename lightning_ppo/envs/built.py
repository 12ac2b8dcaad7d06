"""Remember environments as they were built: only changes are saved, and differences in how they are built are named."""

import contextlib
import hashlib
import sys
import types
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import gymnasium
from gymnasium.vector import VectorEnv
from torch import Tensor

from lightning_ppo.envs.graph import Chunk, as_bytes, is_constant, path_of
from lightning_ppo.envs.graph_writer import GraphWriter
from lightning_ppo.envs.outside import kept_outside
from lightning_ppo.support.errors import one_line

_SHORT = 40
"""Characters up to which a value is told as it is; of a longer one a digest is kept."""


class Layer(NamedTuple):
    """An environment, wrapper or vector environment in its place.

    Attributes:
        number: Its place; what wraps the environment that was remembered has negative ones.
        depth: What wraps it, in number.
        env: Itself.
        own: Whether it knows how to save itself.
        hidden: Whether something around it does.
    """

    number: int
    depth: int
    env: Any
    own: bool
    hidden: bool

    @property
    def name(self) -> str:
        """Name of its class."""
        return type(self.env).__name__


def layers_of(env: Any) -> list[Layer]:
    """Return a vector environment, environment or wrapper and all that it wraps, the outermost first."""
    found: list[tuple[int, Any, bool, bool]] = []

    def walk(layer: Any, depth: int, hidden: bool) -> None:
        own = _knows_itself(layer)
        found.append((depth, layer, own, hidden))
        inner = vars(layer).get("env")
        children = vars(layer).get("envs", [inner] if isinstance(inner, gymnasium.Env | VectorEnv) else [])
        for child in children:
            walk(child, depth + 1, hidden or own)

    walk(env, 0, False)
    first = next((number for number, (_, layer, _, _) in enumerate(found) if _remembered(layer) is not None), 0)
    return [Layer(i - first, depth - first, layer, own, hidden) for i, (depth, layer, own, hidden) in enumerate(found)]


def _knows_itself(layer: Any) -> bool:
    both = all(callable(getattr(type(layer), name, None)) for name in ("get_state", "set_state"))
    return both and type(vars(layer).get("data")).__name__ != "MjData"


def attributes(layer: Any) -> dict[str, Any]:
    """Return what an environment or wrapper keeps itself, in the order of the names, but for what it says is no state.

    That is what its class lists in `not_state`, such as caches and compiled functions.
    """
    left_out = {"envs", "env_fns", "metadata", *getattr(type(layer), "not_state", ())}
    slots = {name: getattr(layer, name) for name in _slots(type(layer)) if hasattr(layer, name)}
    return {
        name: value
        for name, value in sorted((slots | vars(layer)).items())
        if name not in left_out and not (name == "env" and isinstance(value, gymnasium.Env | VectorEnv))
    }


def _slots(cls: type) -> Iterator[str]:
    """Yield the names of attributes that objects of a class do not keep in `__dict__`."""
    for base in cls.__mro__:
        yield from (name for name, value in vars(base).items() if isinstance(value, types.MemberDescriptorType))


class Built:
    """An environment as it was built.

    Attributes:
        chunks: Its attributes.
        classes: Of the objects in them.
        names: Of all attributes, by layer.

    Args:
        env: The environment; None for one that nobody remembers.
    """

    def __init__(self, env: Any = None) -> None:
        self.chunks: dict[str, Chunk] = {}
        self.classes: set[type] = set()
        self.names: dict[int, set[str]] = {}
        self._told: dict[str, list[tuple[str, str]]] = {}
        self._outside: dict[str, str] = {}
        if env is None:
            return
        layers = layers_of(env)
        writer = GraphWriter({id(layer.env): layer.number for layer in layers})
        relative = {id(layer.env): layer.depth for layer in layers}
        copies: dict[Any, Any] = {}
        for layer in layers:
            self._tell(f"{layer.depth}.layer {layer.depth}", path_of(type(layer.env)).replace(":", "."), "")
            present = attributes(layer.env)
            self.names[layer.number] = set(present)
            for name, value in present.items():
                key = f"{layer.number}.{name}"
                try:
                    writer.add(key, value, layer.name)
                    # by itself and without generators, so that copies that were built alike are told alike
                    told = GraphWriter(relative, generators=False).add(key, value, layer.name)
                except Exception:  # of the user's code; optional state ends no run, and saving names it
                    continue
                if isinstance(value, gymnasium.Space):
                    self._tell(f"{layer.depth}.{layer.name}.{name}", one_line(repr(value)), key)
                elif not is_constant(value) and name != "_np_random_seed":
                    self._tell(f"{layer.depth}.{layer.name}.{name}", _digest(told), key)
        for chunk in writer.chunks.values():
            chunk.arrays = [_kept(array, copies) for array in chunk.arrays]
        self.chunks, self.classes = writer.chunks, writer.classes
        self._outside = _outside(layers, self.classes)
        for module in _modules({type(layer.env) for layer in layers} | writer.classes):
            self._tell(f".the source of {module}", _source(module), "")
            for name, value in vars(sys.modules[module]).items():
                if name.isupper() and isinstance(value, bool | int | float | str):
                    self._tell(f".{module}.{name}", repr(value), "")

    def _tell(self, what: str, value: str, key: str) -> None:
        self._told.setdefault(what, []).append((value, key))

    def holds(self, key: str, chunk: Chunk) -> bool:
        """Return whether an attribute is as it was when the environment was built."""
        return key in self.chunks and self.chunks[key].same_as(chunk)

    def changed_outside(self, layers: Sequence[Layer]) -> str:
        """Return the name of what has changed of what environments keep outside of themselves, or nothing."""
        if not self._outside:
            return ""
        now = _outside(layers, self.classes)
        return next((name for name, value in self._outside.items() if now.get(name, value) != value), "")

    def facts(self, changed: Container[str] = ()) -> dict[str, str]:
        """Return what tells of settings and code: what all copies were built with.

        What only one copy has may be chance where it is among the attributes that have `changed` since.
        """
        return {
            what: values[0][0]
            for what, values in self._told.items()
            if len({value for value, _ in values}) == 1 and (len(values) > 1 or values[0][1] not in changed)
        }


_built: WeakKeyDictionary[Any, Built] = WeakKeyDictionary()


def remember(env: Any) -> None:
    """Remember an environment, wrapper or vector environment as it is now, just built, if it can be read at all."""
    with contextlib.suppress(Exception):
        _built[env] = Built(env)


def built_of(env: Any) -> Built:
    """Return what is remembered of an environment, or of what it wraps."""
    return next((built for layer in layers_of(env) if (built := _remembered(layer.env)) is not None), Built())


def _remembered(env: Any) -> Built | None:
    try:
        return _built.get(env)
    except TypeError:  # it cannot be hashed
        return None


def agreed(facts: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the facts that all copies share."""
    first, *others = facts
    return {what: value for what, value in first.items() if all(other.get(what) == value for other in others)}


def difference(saved: dict[str, str], now: dict[str, str]) -> str:
    """Return what an environment is built otherwise with than one that was saved, or nothing."""
    changed = [what for what, value in saved.items() if now.get(what, value) != value]
    if not changed:
        return ""
    what = changed[0]
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    if max(len(saved[what]), len(now[what])) > _SHORT:
        return f"{what.partition('.')[2]} has changed since the run was saved{more}"
    return f"{what.partition('.')[2]} is {now[what]}, but was {saved[what]} when the run was saved{more}"


def _digest(chunk: Chunk) -> str:
    """Return a short value as it is written, and of a longer one a digest."""
    value = chunk.text[1:-4]
    if len(value) <= _SHORT and not chunk.arrays and chunk.text.endswith(",[]]"):
        return value
    digest = hashlib.blake2b(chunk.text.encode(), digest_size=32)
    for array in chunk.arrays:
        digest.update(as_bytes(array).data)
    return digest.hexdigest()


def _kept(array: Any, copies: dict[Any, Any]) -> Any:
    """Return a copy of an array, the same one of equal arrays."""
    content = hashlib.blake2b(as_bytes(array).data, digest_size=16).digest()
    key = (type(array), array.dtype, tuple(array.shape), content)
    if key not in copies:
        copies[key] = array.detach().clone() if isinstance(array, Tensor) else array.copy(order="K")
    return copies[key]


def _modules(classes: Iterable[type]) -> list[str]:
    """Return the modules that define classes and what they derive from, less those that only connect them."""
    found = {base.__module__ for cls in classes for base in cls.__mro__}
    ours = __name__.partition(".")[0]
    return sorted(
        module
        for module in found
        if module.partition(".")[0] not in (ours, *sys.stdlib_module_names)
        and not module.startswith(("gymnasium.core", "gymnasium.vector", "gymnasium.utils"))
        and module in sys.modules
    )


def _outside(layers: Sequence[Layer], classes: set[type]) -> dict[str, str]:
    """Return digests of what environments and the objects in them keep outside of themselves, by name."""
    classes = classes | {type(layer.env) for layer in layers}
    modules = _modules(classes)
    own = {base for cls in classes for base in cls.__mro__ if base.__module__ in modules}
    values = [value for layer in layers for value in attributes(layer.env).values()]
    found: dict[str, str] = {}
    writer = GraphWriter({})
    for name, value in kept_outside(own, values):
        with contextlib.suppress(Exception):  # what cannot be read is left out
            found[name] = _digest(writer.add(name, value, name))
    return found


def _source(module: str) -> str:
    """Return a digest of the file of a module."""
    path = getattr(sys.modules[module], "__file__", None)
    content = Path(path).read_bytes() if path is not None and Path(path).is_file() else b""
    return hashlib.blake2b(content, digest_size=32).hexdigest()
