"""New import paths of classes that have moved, for settings and checkpoints that name the old ones."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "advantages": ("rollout.advantages",),
    "callbacks": ("run.callbacks", "run.checkpointing", "run.stopping", "update.progress_bar"),
    "checkpoint": ("support.checkpoint_files",),
    "class_path": ("settings.class_path",),
    "collector": ("collection.collector",),
    "config": (
        *("settings.sections", "settings.algorithm", "settings.environment", "settings.networks"),
        "settings.loading",
    ),
    "datamodule": ("collection.datamodule",),
    "distributions.base": ("policy.distributions.base",),
    "distributions.composite": ("policy.distributions.composite",),
    "distributions.continuous": ("policy.distributions.continuous", "policy.distributions.bounded"),
    "distributions.discrete": ("policy.distributions.discrete",),
    "episodes": ("rollout.episodes",),
    "errors": ("support.errors",),
    "evaluation": ("evaluation.play",),
    "export": ("interop.export",),
    "inputs": ("policy.inputs",),
    "iteration": ("update.reports",),
    "loggers": ("run.loggers",),
    "loss_terms": ("update.loss_terms",),
    "module": ("update.ppo",),
    "networks": ("policy.networks", "policy.images", "policy.layers"),
    "normalization": ("policy.normalization",),
    "objectives": ("update.objectives",),
    "policy": ("policy.actor_critic",),
    "policy_objectives": ("update.policy_objectives",),
    "recording": ("run.recording",),
    "recurrence": ("policy.recurrence",),
    "rollout": ("rollout.shapes",),
    "run.callbacks": ("update.progress_bar",),
    "sb3": ("interop.sb3",),
    "schedules": ("settings.schedules",),
    "spaces": ("support.spaces",),
    "trust_region": ("update.trust_region",),
    "video": ("evaluation.video",),
}
"""Former modules of lightning_ppo, and the modules that hold now what was in them."""

_PATH = re.compile(r"lightning_ppo\.([\w.]+)([.:])(\w+)")


def new_path(path: str) -> str | None:
    """Return the import path that a class or function of this package has now, or None if it has not moved."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    former, separator, name = match.groups()
    for module in (f"lightning_ppo.{place}" for place in MOVED.get(former, ())):
        if getattr(getattr(importlib.import_module(module), name, None), "__module__", None) == module:
            return f"{module}{separator}{name}"
    return None


def with_new_paths(settings: Any) -> Any:
    """Return saved settings with new import paths for those that have moved; the same object if none has."""
    if isinstance(settings, str):
        return new_path(settings) or settings
    if isinstance(settings, Mapping):
        changed = {key: with_new_paths(value) for key, value in settings.items()}
        return changed if any(changed[key] is not settings[key] for key in changed) else settings
    if isinstance(settings, list | tuple):
        entries = [with_new_paths(value) for value in settings]
        return entries if any(new is not old for new, old in zip(entries, settings, strict=True)) else settings
    return settings
