"""Numbers that environments tell in their infos: success at the ends of episodes, and the entries that are logged.

An entry is one number for each copy, (N,), or one for all of them. Entries of nested dicts have dotted names.
Gymnasium's vector environments say in an entry `_name` which copies have told, and, where they reset a copy within the
step that ends its episode, put the infos of that step in `final_info`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.envs.training_signal import REWARDS, TERMINATIONS
from lightning_ppo.support.errors import ConfigError, one_line
from lightning_ppo.support.notices import warn_once

_log = logging.getLogger(__name__)

SUCCESS = "is_success"
"""Entry that tells whether an episode has reached its goal."""

AUTO = "auto"
"""In place of names: all entries of floating-point numbers of the first step."""

MOST = 32
"""Entries that `auto` logs at most."""

FINAL = "final_info"

_NOT_CHOSEN = (FINAL, "final_obs", "action_mask", REWARDS, TERMINATIONS)


def find(infos: Any, name: str) -> tuple[Any, Any] | None:
    """Return an entry of infos and which copies have told it (None: all of them), or None if there is no such entry."""
    if not isinstance(infos, Mapping):
        return None
    if name in infos:
        return infos[name], infos.get(f"_{name}")
    head, _, tail = name.partition(".")
    return find(infos.get(head), tail) if tail else None


def numbers_in(infos: Mapping[str, Any], num_envs: int, prefix: str = "") -> Iterator[str]:
    """Yield the names of all entries that are one floating-point number for each copy."""
    for key, value in infos.items():
        if not isinstance(key, str) or key.startswith(("_", "lightning_ppo.")) or key in _NOT_CHOSEN:
            continue
        if isinstance(value, Mapping):
            yield from numbers_in(value, num_envs, f"{prefix}{key}.")
        elif _is_float(value) and tuple(value.shape) == (num_envs,):
            yield f"{prefix}{key}"


def _is_float(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


class InfoReader:
    """Reads the infos of a vector environment of NumPy arrays.

    Attributes:
        names: Of the entries that are logged, K; None before the first step, where they are chosen then.
        shared: Those of them that are one number for all copies, so that they belong to no episode.

    Args:
        log_info: Names of entries, or AUTO.
        num_envs: N.
    """

    def __init__(self, log_info: Sequence[str] | str, num_envs: int) -> None:
        self.names: tuple[str, ...] | None = None if log_info == AUTO else tuple(log_info)
        self.num_envs = num_envs
        self.shared: set[str] = set()

    @property
    def reads(self) -> bool:
        """Whether anything is logged, or may be."""
        return self.names is None or bool(self.names)

    def values(self, infos: Mapping[str, Any], ended: Any) -> Any:
        """Return the entries (K, N) of the step just made, NaN where a copy has told none.

        Args:
            infos: Of the step.
            ended: (N,) bool, whose episode the step ended.

        Raises:
            ConfigError: If an entry is not made of numbers, one for each copy or one for all.
        """
        if self.names is None:
            found = [*numbers_in(infos, self.num_envs), *numbers_in(infos.get(FINAL) or {}, self.num_envs)]
            self.names = tuple(dict.fromkeys(found))[:MOST]
        return self._rows(infos, ended)

    def _rows(self, infos: Mapping[str, Any], ended: Any) -> Any:
        assert self.names is not None
        rows = np.full((len(self.names), self.num_envs), np.nan)
        for row, name in zip(rows, self.names, strict=True):
            self._read(row, name, infos, ended)
        return rows

    def successes(self, infos: Mapping[str, Any], ended: Any) -> Any:
        """Return whether episodes have reached their goals, (N,), NaN where the copies do not say; None if none does.

        Args:
            infos: Of the step just made.
            ended: (N,) bool, whose episode the step ended.
        """
        if SUCCESS not in infos and SUCCESS not in (infos.get(FINAL) or {}):
            return None
        row = np.full(self.num_envs, np.nan)
        try:
            self._read(row, SUCCESS, infos, ended)
        except ConfigError as error:
            warn_once(_log, SUCCESS, f"{error}; there is no success rate")
        return row

    def _read(self, row: np.ndarray, name: str, infos: Mapping[str, Any], ended: np.ndarray) -> None:
        """Write an entry into `row` (N,)."""
        final = infos.get(FINAL)
        parts: list[tuple[Any, Any]] = [(infos, None)] if final is None else [(infos, ~ended), (final, ended)]
        for part, rows in parts:
            found = find(part, name)
            if found is None:
                continue
            values, told = self._numbers(found[0], name), found[1]
            rows = told if rows is None else rows if told is None else rows & told
            if rows is None:
                row[:] = values
            else:
                row[rows] = values[rows]

    def _numbers(self, values: Any, name: str) -> np.ndarray:
        """Return an entry as numbers (N,)."""
        array = np.asarray(values)
        if array.dtype == object and array.ndim == 1:
            try:
                array = np.array([np.nan if value is None else value for value in array], np.float64)
            except (TypeError, ValueError):
                raise not_numbers(name, array) from None
        if array.shape == ():
            self.shared.add(name)
            array = np.broadcast_to(array, (self.num_envs,))
        if array.shape == (self.num_envs, 1):
            array = array[:, 0]
        if array.dtype.kind not in "biuf" or array.shape != (self.num_envs,):
            raise not_numbers(name, array)
        return array


class TensorInfoReader(InfoReader):
    """Reads the infos of a vector environment of tensors, without looking at what they hold."""

    def _rows(self, infos: Mapping[str, Any], ended: Any) -> Any:
        assert self.names is not None
        return torch.stack([self._one(infos, ended, name) for name in self.names])

    def successes(self, infos: Mapping[str, Any], ended: Any) -> Any:
        """Return whether episodes have reached their goals, (N,), NaN where copies do not say; None if none does."""
        if SUCCESS not in infos and SUCCESS not in (infos.get(FINAL) or {}):
            return None
        return self._one(infos, ended, SUCCESS)

    def _one(self, infos: Mapping[str, Any], ended: Tensor, name: str) -> Tensor:
        row = torch.full((self.num_envs,), torch.nan, device=ended.device)
        for part in (infos, infos.get(FINAL)):
            found = find(part, name)
            if found is None:
                continue
            told = self._tensor(found[0], name, ended.device)
            if found[1] is not None:
                told = torch.where(torch.as_tensor(found[1], device=ended.device), told, row)
            row = told if part is infos else torch.where(ended, told, row)
        return row

    def _tensor(self, values: Any, name: str, device: torch.device) -> Tensor:
        """Return an entry as numbers (N,)."""
        try:
            tensor = torch.as_tensor(values, device=device).to(torch.get_default_dtype())
        except (TypeError, ValueError, RuntimeError):
            raise not_numbers(name, values) from None
        if tensor.dim() == 0:
            self.shared.add(name)
            return tensor.expand(self.num_envs)
        if tensor.numel() != self.num_envs or tensor.dim() > 2:
            raise not_numbers(name, tensor)
        return tensor.reshape(self.num_envs)


def not_numbers(name: str, values: Any) -> ConfigError:
    """Return the error of an entry that cannot be logged."""
    shape = f" of shape {tuple(values.shape)}" if hasattr(values, "shape") else ""
    kind = f"{getattr(values, 'dtype', type(values).__name__)}"
    what = f"info[{name!r}] is {one_line(kind)}{shape}, expected one number for each copy"
    return ConfigError(what if name == SUCCESS else f"env.log_info: {what}")
