"""The states of simulators written in C++: MuJoCo's data, and the emulator of the Arcade Learning Environment."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Unreadable(Exception):
    """A value that cannot be written as plain data, or not be read again here."""


def _is(value: Any, package: str, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.startswith(package)


def is_renderer(value: Any) -> bool:
    """Return whether a value draws what MuJoCo computes, and is no state."""
    return type(value).__module__.endswith("mujoco_rendering")


def model_checksum(value: Any) -> int | None:
    """Return a checksum of a MuJoCo model; None of anything else."""
    if not _is(value, "mujoco", "MjModel"):
        return None
    import mujoco

    buffer = np.zeros(mujoco.mj_sizeModel(value), np.uint8)
    mujoco.mj_saveModel(value, None, buffer)
    return zlib.crc32(buffer.data)


def native_state(value: Any) -> tuple[str, dict[str, Tensor]] | None:
    """Return a simulator's kind and its state; None of anything else.

    Raises:
        Unreadable: If it cannot tell the whole of it.
    """
    if _is(value, "mujoco", "MjData"):
        return "mujoco", _get_mujoco(value)
    if _is(value, "ale_py", "ALEInterface"):
        if value.getFloat("repeat_action_probability") > 0.0:
            raise Unreadable("with sticky actions the state of ALE lacks the action that the next frame may repeat")
        state = value.cloneState(include_rng=True).serialize()
        return "ale", {"state": torch.frombuffer(bytearray(state), dtype=torch.uint8)}
    return None


def native_restore(kind: str, value: Any) -> Callable[[Mapping[str, Tensor]], None] | None:
    """Return what puts a simulator into a saved state; None where `value` is no simulator of that kind."""
    if kind == "mujoco" and _is(value, "mujoco", "MjData"):
        return lambda saved: _set_mujoco(value, saved)
    if kind == "ale" and _is(value, "ale_py", "ALEInterface"):
        return lambda saved: value.restoreState(type(value.cloneState())(saved["state"].numpy().tobytes()))
    return None


def _derived(data: Any) -> dict[str, np.ndarray]:
    """Return the quantities in MjData by name; a step's rewards and observations read some that lag behind the state.

    Those of the constraints of the moment, empty in new data, and the indices into them are computed by the next step.
    """
    import mujoco

    new = mujoco.MjData(data.model)
    arrays = {name: getattr(new, name) for name in dir(new) if not name.startswith("_")}
    return {
        name: getattr(data, name)
        for name, x in arrays.items()
        if isinstance(x, np.ndarray) and x.size and np.issubdtype(x.dtype, np.floating)
    }


def _get_mujoco(data: Any) -> dict[str, Tensor]:
    import mujoco

    # everything a step reads, warm start included (MuJoCo documentation, "Physics state")
    state = np.empty(mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {name: torch.from_numpy(value.copy()) for name, value in _derived(data).items()}
    return {**derived, "state": torch.from_numpy(state)}


def _set_mujoco(data: Any, saved: Mapping[str, Tensor]) -> None:
    import mujoco

    mujoco.mj_setState(data.model, data, saved["state"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(data.model, data)
    for name, value in _derived(data).items():
        stored = saved.get(name)
        if stored is not None and tuple(stored.shape) == value.shape:
            value[...] = stored.numpy()
