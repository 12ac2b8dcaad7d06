"""Save and restore the exact state of environments as plain data.

An environment or wrapper may offer `get_state()` and `set_state(state)`. For the others every layer's attributes are
read: numbers, strings, arrays, tensors, random generators and containers of them are state; spaces, specs and functions
are constant; anything else means that the state cannot be known to be complete, and says so.
"""

import enum
import types
from collections import deque
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from lightning_ppo.envs.processes import ProcessVectorEnv
from lightning_ppo.random_state import restore_generator

_CONSTANT = (
    gymnasium.Space,
    EnvSpec,
    enum.Enum,
    np.dtype,
    torch.dtype,
    torch.device,
    type,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
)


class _Opaque(Exception):
    """An attribute whose state cannot be read as plain data."""


def get_env_state(env: VectorEnv) -> tuple[dict[str, Any] | None, str]:
    """Return the state of a vector environment as plain data, or None and the reason why it cannot be had."""
    return read_layer(env)


def set_env_state(env: VectorEnv, state: dict[str, Any]) -> None:
    """Put a vector environment, built and reset like the saved one, into the state `get_env_state` returned."""
    write_layer(env, state)


def read_layer(layer: Any) -> tuple[dict[str, Any] | None, str]:
    """Return the state of an environment, wrapper or vector environment in this process, or None and the reason."""
    try:
        return _Reader().layer(layer, type(layer).__name__), ""
    except _Opaque as reason:
        return None, str(reason)


def write_layer(layer: Any, state: dict[str, Any]) -> None:
    """Put an environment, wrapper or vector environment into the state that `read_layer` returned."""
    _Writer().layer(layer, state)


class _Reader:
    """Turns environments into terms that `torch.load(weights_only=True)` reads back."""

    def __init__(self) -> None:
        self._arrays: list[tuple[str, np.ndarray]] = []
        self._tensors: list[tuple[str, torch.Tensor]] = []

    def layer(self, layer: Any, path: str) -> dict[str, Any]:
        """Return the state of an environment or wrapper and of what it wraps."""
        if isinstance(layer, AsyncVectorEnv):
            return {"processes": _ask_processes(layer), "generators": list(layer.get_attr("generators"))}
        own = getattr(type(layer), "get_state", None)
        if callable(own) and callable(getattr(type(layer), "set_state", None)) and not _is_mujoco(layer):
            return {"own": self.encode(layer.get_state(), f"{path}.get_state()")}
        attributes: dict[str, Any] = {}
        children: dict[str, Any] = {}
        for name, value in vars(layer).items():
            if name == "envs" or (name == "env" and isinstance(value, gymnasium.Env | VectorEnv)):
                children[name] = None
            elif isinstance(value, _CONSTANT) or name in ("env_fns", "metadata") or _is_mujoco_model(value):
                continue
            elif _is_mujoco_data(value):
                attributes[name] = {"mujoco": _get_mujoco(layer.model, value)}
            elif _is_ale(value):
                attributes[name] = {"ale": _get_ale(layer)}
            else:
                attributes[name] = self.encode(value, f"{path}.{name}")
        for name in children:  # after the attributes, as they are restored
            value = getattr(layer, name)
            wrapped = [self.layer(env, type(env).__name__) for env in ([value] if name == "env" else value)]
            children[name] = wrapped[0] if name == "env" else wrapped
        return {"attributes": attributes, "children": children}

    def encode(self, value: Any, where: str) -> Any:
        """Return a value as plain data; `where` names it in the reason if that cannot be done."""
        if isinstance(value, _CONSTANT):
            return {"constant": True}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.bool_ | np.integer | np.floating):
            return {"scalar": value.item(), "dtype": value.dtype.str}
        if isinstance(value, np.ndarray) and value.dtype != object:
            return self._array(value, where)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, where)
        if isinstance(value, torch.Generator):
            return {"torch_generator": value.get_state()}
        if isinstance(value, np.random.Generator):
            return {"generator": self.encode(value.bit_generator.state, where)}
        if isinstance(value, deque):
            return {"deque": [self.encode(v, where) for v in value], "maxlen": value.maxlen}
        if isinstance(value, tuple):
            return {"tuple": [self.encode(v, where) for v in value]}
        if isinstance(value, list):
            return [self.encode(v, where) for v in value]
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            return {"dict": {k: self.encode(v, f"{where}[{k!r}]") for k, v in value.items()}}
        raise _Opaque(f"{where} is a {type(value).__name__}, which is not plain data")

    def _array(self, value: np.ndarray, where: str) -> dict[str, Any]:
        for number, (name, other) in enumerate(self._arrays):
            if other is value:
                return {"same": number}
            if np.may_share_memory(value, other):
                raise _Opaque(f"{where} shares memory with {name}")
        self._arrays.append((where, value))
        return {"array": torch.from_numpy(np.array(value, order="C")), "number": len(self._arrays) - 1}

    def _tensor(self, value: torch.Tensor, where: str) -> dict[str, Any]:
        for number, (name, other) in enumerate(self._tensors):
            if other is value:
                return {"same_tensor": number}
            if value.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0:
                raise _Opaque(f"{where} shares memory with {name}")
        self._tensors.append((where, value))
        return {"tensor": value.detach().cpu().clone(), "number": len(self._tensors) - 1}


class _Writer:
    """Puts what `_Reader` returned into environments."""

    def __init__(self) -> None:
        self._arrays: dict[int, np.ndarray] = {}
        self._tensors: dict[int, torch.Tensor] = {}

    def layer(self, layer: Any, state: dict[str, Any]) -> None:
        """Set the state of an environment or wrapper and of what it wraps."""
        if "processes" in state:
            layer.set_attr("exact_state", state["processes"])
            if "generators" in state:  # not in checkpoints of earlier versions
                layer.set_attr("generators", state["generators"])
            return
        if "own" in state:
            layer.set_state(self.decode(state["own"], None))
            return
        for name, value in state["attributes"].items():
            if isinstance(value, dict) and "mujoco" in value:
                _set_mujoco(layer.model, getattr(layer, name), value["mujoco"])
                continue
            if isinstance(value, dict) and "ale" in value:
                layer.restore_state(type(layer.clone_state())(value["ale"].numpy().tobytes()))
                continue
            current = vars(layer).get(name)
            decoded = self.decode(value, current)
            if isinstance(current, np.random.Generator):
                current.bit_generator.state = decoded.bit_generator.state  # others may hold the same generator
            else:
                vars(layer)[name] = decoded
        for name, child in state["children"].items():
            if isinstance(child, list):
                for env, env_state in zip(getattr(layer, name), child, strict=True):
                    self.layer(env, env_state)
            else:
                self.layer(getattr(layer, name), child)

    def decode(self, value: Any, current: Any) -> Any:
        """Return what was encoded; constants are taken from the `current` value."""
        if isinstance(value, list):
            return self._items(value, current)
        if not isinstance(value, dict):
            return value
        kind, content = next(iter(value.items()))
        if kind == "constant":
            return current
        if kind == "scalar":
            return np.dtype(value["dtype"]).type(content)
        if kind == "array":
            self._arrays[value["number"]] = content.numpy().copy()
            return self._arrays[value["number"]]
        if kind == "same":
            return self._arrays[content]
        if kind == "tensor":
            device = current.device if isinstance(current, torch.Tensor) else content.device
            restored = content.to(device, copy=True)
            self._tensors[value.get("number", -1)] = restored
            return restored
        if kind == "same_tensor":
            return self._tensors[content]
        if kind == "torch_generator":
            restore_generator(current, content, "an environment draws")
            return current
        if kind == "generator":
            state = self.decode(content, None)
            kind = getattr(np.random, state["bit_generator"], None)
            if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
                raise ValueError(f"unknown kind of random generator: {state['bit_generator']}")
            bit_generator = kind()
            bit_generator.state = state
            return np.random.Generator(bit_generator)
        if kind == "deque":
            return deque(self._items(content, current), maxlen=value["maxlen"])
        if kind == "tuple":
            return tuple(self._items(content, current))
        if kind == "dict":
            present = current if isinstance(current, dict) else {}
            return {k: self.decode(v, present.get(k)) for k, v in content.items()}
        raise ValueError(f"unknown kind of environment state: {kind}")

    def _items(self, values: list[Any], current: Any) -> list[Any]:
        present = list(current) if isinstance(current, list | tuple | deque) else []
        present += [None] * (len(values) - len(present))
        return [self.decode(value, now) for value, now in zip(values, present, strict=False)]


def _ask_processes(env: AsyncVectorEnv) -> list[Any]:
    if not isinstance(env, ProcessVectorEnv):
        raise _Opaque("environments in other processes keep their state to themselves")
    if env.closed:
        raise _Opaque("environments in other processes keep their state to themselves once they are closed")
    states, reasons = zip(*env.get_attr("exact_state"), strict=True)
    if not all(states):
        raise _Opaque(max(reasons))
    return list(states)


def _is_ale(value: Any) -> bool:
    return type(value).__module__.startswith("ale_py") and type(value).__name__ == "ALEInterface"


def _get_ale(layer: Any) -> torch.Tensor:
    if layer.ale.getFloat("repeat_action_probability") > 0.0:
        raise _Opaque("with sticky actions the state of ALE lacks the action that the next frame may repeat")
    return torch.frombuffer(bytearray(layer.clone_state(include_rng=True).serialize()), dtype=torch.uint8)


def _is_mujoco(layer: Any) -> bool:
    return _is_mujoco_data(vars(layer).get("data"))


def _is_mujoco_data(value: Any) -> bool:
    return type(value).__module__.startswith("mujoco") and type(value).__name__ == "MjData"


def _is_mujoco_model(value: Any) -> bool:
    module = type(value).__module__
    return (module.startswith("mujoco") and type(value).__name__ == "MjModel") or module.endswith("mujoco_rendering")


def _derived(model: Any, data: Any) -> dict[str, np.ndarray]:
    """Return the quantities in MjData by name; a step's rewards and observations read some that lag behind the state.

    Those of the constraints of the moment, empty in new data, and the indices into them are computed by the next step.
    """
    import mujoco

    new = mujoco.MjData(model)
    arrays = {name: getattr(new, name) for name in dir(new) if not name.startswith("_")}
    return {
        name: getattr(data, name)
        for name, x in arrays.items()
        if isinstance(x, np.ndarray) and x.size and np.issubdtype(x.dtype, np.floating)
    }


def _get_mujoco(model: Any, data: Any) -> dict[str, Any]:
    import mujoco

    # everything a step reads, warm start included (MuJoCo documentation, "Physics state")
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {name: torch.from_numpy(value.copy()) for name, value in _derived(model, data).items()}
    return {"state": torch.from_numpy(state), "derived": derived}


def _set_mujoco(model: Any, data: Any, saved: dict[str, Any]) -> None:
    import mujoco

    mujoco.mj_setState(model, data, saved["state"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    for name, value in _derived(model, data).items():
        stored = saved["derived"].get(name)
        if stored is not None and tuple(stored.shape) == value.shape:
            value[...] = stored.numpy()
