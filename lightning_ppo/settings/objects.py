"""Objects of Python among settings: classes, functions, arrays, data frames.

Settings are merged as plain data, so objects are taken out before and put back after. Files hold a text in their place,
`<DataFrame from Python>`, which whoever reads the file has to replace.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lightning_ppo.settings.class_path import as_path
from lightning_ppo.settings.loading import OBJECTS, PLAIN, flat, marked, to_container
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.env_maker import EnvMaker
from lightning_ppo.support.errors import ConfigError

TAKEN = {*OBJECTS, "objective", "loss_terms", "callbacks", "loggers", "trainer"}
"""Settings in which objects may stand."""

_MARK = re.compile(r"<[\w.]+ from Python>")


class Objects:
    """The objects that were taken out of settings, by the texts that stand in their places."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def take_out(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings, nested or with dotted keys, with texts in the places of objects."""
        return {str(key): self._take(value, str(key).split(".")) for key, value in settings.items()}

    def _take(self, value: Any, path: list[str]) -> Any:
        if isinstance(value, Mapping):
            return {key: self._take(child, [*path, *str(key).split(".")]) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._take(child, path) for child in value]
        if path == ["env", "id"] and callable(value):
            return self._token(EnvMaker(value))
        if type(value) in PLAIN:
            return value
        if not TAKEN.intersection(path):
            found = value.tolist() if hasattr(value, "tolist") else marked(value)
            if isinstance(found, str):
                raise ConfigError(f"{'.'.join(path)}: expected plain data, got {type(value).__name__}")
            return found
        named = as_path(value)
        return named if isinstance(named, str) else self._token(value)

    def _token(self, value: Any) -> str:
        # a word with a dot, which passes for a class path
        token = f"lightning_ppo.given.{uuid.uuid4().hex}"
        self._found[token] = value
        return token

    def put_back(self, config: Config) -> Config:
        """Return settings with the objects in their places.

        Raises:
            ConfigError: If a text of a file still stands for an object.
        """
        for key, value in flat(to_container(config)).items():
            if mark := _mark(value):
                kind = mark[1:].partition(" ")[0]
                raise ConfigError(
                    f"{key}: files hold no {kind}, which was given from Python; give it again, as "
                    f"lightning_ppo.train({{..., {key!r}: ...}})"
                )
        return self._put(config) if self._found else config

    def _put(self, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: self._put(getattr(value, f.name)) for f in fields(value)})
        if isinstance(value, dict):
            return {key: self._put(child) for key, child in value.items()}
        if isinstance(value, list):
            return [self._put(child) for child in value]
        return self._found.get(value, value) if isinstance(value, str) else value


def _mark(value: Any) -> str | None:
    """Return the text in a setting that stands for an object."""
    if isinstance(value, list | dict):
        inside = value.values() if isinstance(value, dict) else value
        return next((mark for mark in map(_mark, inside) if mark), None)
    return value if isinstance(value, str) and _MARK.fullmatch(value) else None
