"""What was changed in the environments of a run: for those that are built later, and for checkpoints."""

import logging
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_ppo.envs.changes import Change, from_plain, to_plain
from lightning_ppo.support.notices import warn_once

_log = logging.getLogger(__name__)

Log = dict[tuple[str, str], Change]
"""The last change of each kind and name, in the order in which they were made."""


class Changes:
    """Keeps the last change of each name.

    Environments that are built later - for another fit, in place of a copy that failed, for an evaluation, or because a
    resumed run cannot restore the state of the former ones - are changed in the same way.
    """

    def __init__(self) -> None:
        self._training: Log = {}
        self._evaluation: Log = {}
        self._before: Log = {}
        """What was asked for before a checkpoint was restored: asked again on resuming, it is no new setting."""
        self._digest: int | None = 0

    @property
    def training(self) -> list[Change]:
        """Those of training environments."""
        return list(self._training.values())

    @property
    def evaluation(self) -> list[Change]:
        """Those of evaluation environments."""
        return list(self._evaluation.values())

    def add(self, change: Change, evaluation: bool) -> None:
        """Keep a change, of evaluation environments, too, or of those of training only."""
        self._digest = None
        _add(self._training, change)
        if evaluation:
            _add(self._evaluation, change)

    def begin(self) -> None:
        """Count what has been asked for so far as the settings of a new run."""
        self._before = dict(self._training)

    def digest(self) -> int:
        """Return a number that tells the changes of one rank from those of another."""
        if self._digest is None:
            self._digest = zlib.crc32(_text(self._training.values()).encode())
        return self._digest

    def state_dict(self) -> dict[str, Any]:
        """Return the changes as plain data; those that a checkpoint cannot hold are named once."""
        logs = {"training": self._training, "evaluation": self._evaluation, "before": self._before}
        saved = {name: to_plain(log.values()) for name, log in logs.items()}
        for _, left_out in saved.values():
            for text in left_out:
                warn_once(_log, text, f"{text}, so a resumed run does not make the change again")
        return {name: found for name, (found, _) in saved.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[Change]:
        """Go on with saved changes; return those that this run asks for and the saved one did not, which win."""
        saved = {name: from_plain(state.get(name, ())) for name in ("training", "evaluation", "before")}
        before = {change.key: change for change in saved["before"]}
        own, self._before, self._digest = self._training, dict(self._training), None
        new = [
            change for key, change in own.items() if _text([before[key]] if key in before else []) != _text([change])
        ]
        for log, name in ((self._training, "training"), (self._evaluation, "evaluation")):
            present = dict(log)
            log.clear()
            for change in (*saved[name], *(change for change in new if change.key in present)):
                _add(log, change)
        return new

    def forget(self, change: Change) -> None:
        """Forget a change: a setting takes its place."""
        for log in (self._training, self._evaluation):
            log.pop(change.key, None)


def _add(log: Log, change: Change) -> None:
    log.pop(change.key, None)
    log[change.key] = change


def _text(changes: Iterable[Change]) -> str:
    """Return a text that is the same for equal changes; of what is no plain data it tells the kind."""
    found, left_out = to_plain(changes)
    return f"{_listed(found)}{left_out}"


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(child) for child in value]
    return (str(value.dtype), value.tolist()) if hasattr(value, "tolist") else value
