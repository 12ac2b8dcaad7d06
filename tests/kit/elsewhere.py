"""A device that is not there: tensors that say they lie elsewhere, hold real values, and tell who looks at them.

Whatever is done with them is computed on the CPU, so that control flow is that of a real device, and results can be
compared with those of the CPU. Two things that a GPU punishes are noticed: tensors of two devices in one operation, and
a host that waits for a value.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import lightning_ppo
from lightning_ppo.support import tree
from lightning_ppo.update import trainer_checks

ELSEWHERE, HOST = torch.device("meta"), torch.device("cpu")
"""`meta` is the one device besides the CPU on which a build without accelerators computes gradients."""
PACKAGE = str(Path(lightning_ppo.__file__).parent) + "/"
ITERATION = "next_rollout", "training_step"
"""Functions of the package that an iteration consists of."""
WITH_MASKS = "index", "index_put", "index_put_", "_index_put_impl_"
"""Operations that count the rows of a mask, where one is given."""
REFUSED = (
    "cumsum",
    "put_",
    "histc",
    "bincount",
    "median",
    "kthvalue",
    "nll_loss_forward",
    "_adaptive_avg_pool2d_backward",
)
"""Operations on floating-point numbers without a deterministic kernel for GPUs, which torch then refuses."""
UNKNOWN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Elsewhere(Tensor):
    """A tensor on the device that is not there.

    Attributes:
        held: Its values, on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, device=ELSEWHERE, **layout)
        made.held = held.detach()
        return made

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: "Elsewhere") -> None:
        self.held = value.held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=ELSEWHERE)

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} is called after the test")


class Generator(torch.Generator):
    """Draws on the CPU what it says it draws elsewhere."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.place


class Watch(TorchDispatchMode):
    """Computes with such tensors, refuses to mix devices, and notes where the host waits during iterations.

    Attributes:
        waits: File, function and operation of each wait for a value, in order.
        sent: Likewise of each tensor that goes there from the host, which holds the host up while it is read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        theirs = [x for x in tensors if isinstance(x, Elsewhere)]
        target = kwargs.get("device")
        if name == "copy_":
            target = args[0].device
        elif theirs and name != "_to_copy":
            # as CUDA has it, a single number on the host may take part
            mixed = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim() > 0]
            assert not mixed, f"{_place()}: {function} is given tensors of two devices"
        if theirs and torch.are_deterministic_algorithms_enabled():
            assert name not in REFUSED or not theirs[0].is_floating_point(), f"{_place()}: {name} is not deterministic"
        if theirs and (target == HOST or _asks(function, name, args)):
            self._note(self.waits, name)
        if target == ELSEWHERE and len(theirs) < len(tensors):
            self._note(self.sent, name)
        held = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
        if target == ELSEWHERE and name != "copy_":
            held[1]["device"] = HOST
        found = function(*held[0], **held[1])
        if name == "copy_":
            return args[0]
        if target == HOST or not (theirs or target == ELSEWHERE):
            return found
        found = tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, found)
        return return_and_correct_aliasing(function, args, kwargs, found) if theirs else found

    def _note(self, found: list[str], operation: str) -> None:
        if place := _place():
            found.append(f"{place} {operation}")


def _asks(function: Any, name: str, args: tuple[Any, ...]) -> bool:
    """Return whether the host needs values to go on after an operation."""
    if name in WITH_MASKS:
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    return bool(UNKNOWN.intersection(function.tags))


def _place() -> str:
    """Return file and function of the package where an iteration is; nothing outside of iterations."""
    innermost, within, frame = "", False, sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            innermost = innermost or f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}"
            within |= code.co_name in ITERATION
        frame = frame.f_back
    return innermost if within else ""


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Have the device that is not there."""
    asked = torch.is_autocast_enabled
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    with monkeypatch.context() as patch, Watch() as watch:
        patch.setattr(torch, "Generator", Generator)
        for name in ("tensor", "as_tensor"):  # which give tensors on `meta` no values
            patch.setattr(torch, name, _moved(getattr(torch, name)))
        patch.setattr(torch, "is_autocast_enabled", lambda device: device != ELSEWHERE.type and asked(device))
        patch.setattr(trainer_checks, "_check_strategy", lambda strategy: None)  # which knows CPUs and GPUs
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay who they are, as on a GPU
        try:
            yield watch
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swapping)


def _moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(values: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        there = device is not None and torch.device(device) == ELSEWHERE
        if isinstance(values, Elsewhere):
            return values if device is None or there else values.to(device)
        found = make(values, *args, device=HOST if there else device, **kwargs)
        return found.to(device) if there else found

    return made


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Take any device."""


def strategy() -> SingleDeviceStrategy:
    """What a Trainer needs to train there."""
    return SingleDeviceStrategy(ELSEWHERE, _Accelerator())


class Moved(VectorEnv):
    """A vector environment of NumPy arrays as one of tensors on a device; the way back is not watched."""

    def __init__(self, env: VectorEnv, device: torch.device) -> None:
        self.env, self.place, self.metadata, self.num_envs = env, device, env.metadata, env.num_envs
        self.observation_space, self.single_observation_space = env.observation_space, env.single_observation_space
        self.action_space, self.single_action_space = env.action_space, env.single_action_space

    def _there(self, values: Any) -> Any:
        made = tree.tree_map(lambda x: torch.from_numpy(np.array(x)), values)
        return made if self.place == HOST else tree.tree_map(Elsewhere, made)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observations, infos = self.env.reset(**kwargs)
        return self._there(observations), self._masks(infos)

    def step(self, actions: Any) -> tuple[Any, ...]:
        here = tree.tree_map(lambda x: getattr(x, "held", x).numpy(), actions)
        *returned, infos = self.env.step(here)
        finals = {}
        if "final_obs" in infos:
            finals["final_obs"] = tree.tree_map(np.array, returned[0])
            for row, one in enumerate(infos["final_obs"]):
                if one is not None:
                    tree.tree_map(lambda x, y, row=row: x.__setitem__(row, y), finals["final_obs"], one)
        return *(self._there(x) for x in returned), self._masks(infos) | self._there(finals)

    def _masks(self, infos: dict[str, Any]) -> dict[str, Any]:
        return {"action_mask": self._there(np.stack(infos["action_mask"]))} if "action_mask" in infos else {}
