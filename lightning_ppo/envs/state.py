"""Save and restore the exact state of environments as plain data.

An environment or wrapper may offer `get_state()` and `set_state(state)`. Of the others every attribute is read (see
`graph`): what is plain data is state; spaces and functions are constant; anything else means that the state cannot be
known to be complete, and says so. What is saved is what has changed since the environment was built, and what is
restored is the environment as it is built now, with these changes. One that is built otherwise than the saved one was,
since its settings or its code have changed, is not restored.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from torch import Tensor

from lightning_ppo.envs.built import Layer, agreed, attributes, built_of, difference, layers_of
from lightning_ppo.envs.graph import Chunk, as_bytes, delete_attribute, linked, set_attribute
from lightning_ppo.envs.graph_reader import GraphReader
from lightning_ppo.envs.graph_writer import GraphWriter
from lightning_ppo.envs.native import Unreadable
from lightning_ppo.envs.processes import ProcessVectorEnv
from lightning_ppo.support.errors import described
from lightning_ppo.support.packing import from_bytes, to_bytes

OWN = "get_state()"
"""In place of the name of an attribute: the state that an environment returns itself."""

_LARGE = 1024
"""Bytes from which equal arrays are stored once."""


def get_env_state(env: Any) -> tuple[dict[str, Any] | None, str]:
    """Return the state of a vector environment, environment or wrapper as plain data, or None and the reason why not.

    Whatever goes wrong is a reason.
    """
    try:
        return _read(env), ""
    except Unreadable as reason:
        return None, str(reason)
    except Exception as error:
        return None, f"{type(env).__name__} could not be read: {described(error)}"


def set_env_state(env: Any, state: Mapping[str, Any]) -> str:
    """Put an environment, built and reset like the saved one, into the state that `get_env_state` returned.

    Returns:
        Nothing, or the reason why it cannot be done; the environment must then be reset.
    """
    try:
        _write(env, state)
    except Unreadable as reason:
        return str(reason)
    except Exception as error:
        return f"{type(env).__name__} could not be restored: {described(error)}"
    return ""


def return_to_built(env: Any) -> None:
    """Return an environment to its state when it was built, as far as that is known; it must then be reset."""
    nothing = _packed({}, {}, {})
    parallel = [layer.env for layer in layers_of(env) if isinstance(layer.env, ProcessVectorEnv)]
    if parallel:
        nothing["processes"] = [nothing] * parallel[0].num_envs
    set_env_state(env, nothing)


def largest_part(state: Mapping[str, Any]) -> tuple[int, str]:
    """Return the bytes of the largest attribute in a state, and its name."""
    return max((tuple(part["largest"]) for part in state.get("processes", [state])), default=(0, ""))


# ---------------------------------------------------------------- saving


def _read(env: Any) -> dict[str, Any]:
    layers, built = layers_of(env), built_of(env)
    parallel = next((layer.env for layer in layers if isinstance(layer.env, AsyncVectorEnv)), None)
    writer = _written(layers, parallel)
    for layer in layers:
        if layer.own and not layer.hidden:
            writer.add(f"{layer.number}.{OWN}", layer.env.get_state(), f"{layer.name}.{OWN}")
    writer.check_memory()
    outside = built.changed_outside(layers)
    if outside:
        raise Unreadable(f"{outside} has changed, which is kept outside of the environment")
    names: dict[int, list[list[str]]] = {}
    for layer in _read_by_attribute(layers, parallel):
        before, now = built.names.get(layer.number, set()), set(attributes(layer.env))
        if before != now:
            names[layer.number] = [sorted(now - before), sorted(before - now)]
    changed = [key for key, chunk in writer.chunks.items() if not built.holds(key, chunk)]
    stored = sorted(linked(changed, writer.chunks))
    state = _packed({key: writer.chunks[key] for key in stored}, names, built.facts(stored))
    state["largest"] = _largest(stored, writer.chunks, {str(layer.number): layer.name for layer in layers})
    if parallel is not None:
        state["processes"], facts = _ask_processes(parallel)
        state["facts"] |= facts
        state["generators"] = list(parallel.get_attr("generators"))
    return state


def _read_by_attribute(layers: Sequence[Layer], parallel: Any) -> list[Layer]:
    return [layer for layer in layers if not (layer.own or layer.hidden or layer.env is parallel)]


def _written(layers: Sequence[Layer], parallel: Any) -> GraphWriter:
    writer = GraphWriter({id(layer.env): layer.number for layer in layers})
    for layer in _read_by_attribute(layers, parallel):
        for name, value in attributes(layer.env).items():
            writer.add(f"{layer.number}.{name}", value, f"{layer.name}.{name}")
    return writer


def _packed(chunks: dict[str, Chunk], names: dict[int, Any], facts: dict[str, str]) -> dict[str, Any]:
    """Return chunks as plain data: one text, and arrays of which equal ones are there once."""
    arrays: list[Tensor] = []
    found: dict[Any, int] = {}
    places: dict[str, list[int]] = {}
    for key, chunk in chunks.items():
        for array in chunk.arrays:
            content = _to_tensor(array)
            same: Any = len(arrays)
            if content.nbytes >= _LARGE:
                same = (content.dtype, content.shape, hashlib.blake2b(as_bytes(content).data).digest())
            if same not in found:
                found[same] = len(arrays)
                arrays.append(content)
            places.setdefault(key, []).append(found[same])
    parts = ",".join(f"{json.dumps(key)}:{chunk.text}" for key, chunk in chunks.items())
    text = f'{{"chunks":{{{parts}}},"places":{json.dumps(places)},"names":{json.dumps(names)}}}'
    graph = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
    return {"graph": graph, "arrays": arrays, "facts": facts}


def _to_tensor(array: Any) -> Tensor:
    """Return a copy as a tensor on the CPU, of bytes where torch has no such type."""
    if isinstance(array, Tensor):
        return array.detach().to("cpu", copy=True)
    copy = np.array(array, order="F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C")
    try:
        return torch.from_numpy(copy.reshape(-1, order="A"))
    except (TypeError, ValueError):
        return torch.from_numpy(np.frombuffer(copy.tobytes("A"), np.uint8).copy())


def _largest(keys: Iterable[str], chunks: Mapping[str, Chunk], names: Mapping[str, str]) -> list[Any]:
    sizes = [(len(chunks[key].text) + sum(array.nbytes for array in chunks[key].arrays), key) for key in keys]
    size, key = max(sizes, default=(0, "."))
    number, _, name = key.partition(".")
    return [size, f"{names.get(number, '')}.{name}"]


def _ask_processes(env: AsyncVectorEnv) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the states of copies in processes of their own, and what all of them were built with."""
    if not isinstance(env, ProcessVectorEnv):
        raise Unreadable("environments in other processes keep their state to themselves")
    if env.closed:
        raise Unreadable("environments in other processes keep their state to themselves once they are closed")
    contents, reasons = zip(*env.get_attr("exact_state"), strict=True)
    if not all(contents):
        raise Unreadable(max(reasons))
    states = [from_bytes(content) for content in contents]
    alone = [state.pop("facts") for state in states]
    return states, agreed(alone if len(alone) == 1 else env.get_attr("built_facts"))


# ---------------------------------------------------------------- restoring


def _write(env: Any, state: Mapping[str, Any]) -> None:
    if "graph" not in state:
        raise Unreadable("the checkpoint is of an earlier version, which kept the state of environments otherwise")
    layers, built = layers_of(env), built_of(env)
    parallel = next((layer.env for layer in layers if isinstance(layer.env, AsyncVectorEnv)), None)
    facts = built.facts()
    if parallel is not None:
        facts |= agreed(parallel.get_attr("built_facts"))
    reason = difference(state.get("facts", {}), facts)
    if reason:
        raise Unreadable(reason)
    content = json.loads(state["graph"].numpy().tobytes())
    present = {layer.number: attributes(layer.env) for layer in layers}
    names = {number: set(found) for number, found in built.names.items()}
    for number, (new, gone) in content["names"].items():
        names[int(number)] = names.get(int(number), set()) - set(gone) | set(new)
    chunks: dict[str, Any] = {
        key: (chunk, [state["arrays"][k] for k in content["places"].get(key, ())])
        for key, chunk in content["chunks"].items()
    }
    writer = _written(layers, parallel)
    reset = {
        key
        for key, chunk in built.chunks.items()
        if key not in chunks and _has(names, key) and not (writer.chunks.get(key) or Chunk()).same_as(chunk)
    }
    for key in linked(reset, built.chunks) - chunks.keys():  # what this reset has changed, but not the one before
        chunks[key] = (json.loads(built.chunks[key].text), built.chunks[key].arrays)
    reader = GraphReader(
        chunks,
        {layer.number: layer.env for layer in layers},
        {key: present[number].get(name) for key in chunks for number, name in [_parts(key)]},
        writer.classes | built.classes,
        {type(layer.env).__module__.partition(".")[0] for layer in layers},
    )
    values = reader.read()
    envs = {layer.number: layer.env for layer in layers}
    for layer in _read_by_attribute(layers, parallel):
        for name in present[layer.number].keys() - names.get(layer.number, present[layer.number].keys()):
            delete_attribute(layer.env, name)
    for key, value in values.items():
        number, name = _parts(key)
        if name != OWN:
            set_attribute(envs[number], name, value)
    for effect in reader.effects:
        effect()
    for key, value in values.items():
        number, name = _parts(key)
        if name == OWN:
            envs[number].set_state(value)
    if parallel is not None:
        parallel.set_attr("exact_state", [to_bytes(part) for part in state["processes"]])
        if "generators" in state:  # the random state of each process; none where nothing but the building is restored
            parallel.set_attr("generators", state["generators"])
        reasons = parallel.get_attr("refusal")
        if any(reasons):
            raise Unreadable(max(reasons))


def _parts(key: str) -> tuple[int, str]:
    number, _, name = key.partition(".")
    return int(number), name


def _has(names: Mapping[int, set[str]], key: str) -> bool:
    number, name = _parts(key)
    return name in names.get(number, ())
