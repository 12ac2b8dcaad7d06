"""Whether what settings name is there, found out by reading sources: importing torch and Lightning takes seconds."""

import ast
import sys
from collections.abc import Collection, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from lightning_ppo.settings.loading import to_container
from lightning_ppo.settings.other_names import name_here
from lightning_ppo.settings.sections import Config
from lightning_ppo.settings.trust import named_in
from lightning_ppo.support.errors import ConfigError, nearest


def check_existence(config: Config) -> None:
    """Refuse settings that name a flag, class or environment which does not exist; whoever uses them checks the rest.

    Raises:
        ConfigError: If a flag of the Trainer or a class is unknown.
        EnvironmentFault: If an environment is unknown, or the package that brings it is missing.
    """
    check_flags(config.trainer, _trainer_flags())
    environments = {"environment", "pool", "argument", "pool argument"}
    for reference in named_in(to_container(config)):
        if reference.kind not in {"trainer", *environments}:
            _check_class(reference.key, reference.name)
    name = config.env.id
    if name and ":" not in name and config.env.backend != "envpool":
        from lightning_ppo.support.env_specs import find_spec

        find_spec(name)


def check_flags(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError for flags that the Trainer does not have."""
    for name in settings:
        if known and name not in known:
            meant = name_here(name) or f"trainer.{nearest(name, known)}"
            raise ConfigError(f"trainer.{name}: unknown setting of the Trainer; did you mean {meant}?")


def _trainer_flags() -> list[str]:
    """Return the arguments of Lightning's Trainer, an empty list if its source does not tell."""
    for node in ast.walk(_parsed("pytorch_lightning.trainer.trainer")):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return [argument.arg for argument in method.args.kwonlyargs]
    return []


def _check_class(key: str, path: str) -> None:
    """Raise ConfigError for a class path whose package, or whose name in a module that is read easily, is not there."""
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        return
    package = module.partition(".")[0]
    if package not in sys.modules and _find(package) is None and package != "lightning":  # who mixes it up is told so
        raise ConfigError(f"{key}: cannot import {path!r}: No module named {package!r}")
    names = _names(module)
    if names and name not in names:
        raise ConfigError(f"{key}: cannot import {path!r}: did you mean {module}.{nearest(name, names)}?")


def _names(module: str) -> set[str]:
    """Return what the source of a module binds, somewhere in it; nothing if it may bind more than that."""
    names: set[str] = set()
    for node in ast.walk(_parsed(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return set() if names & {"*", "__getattr__", "globals", "sys", "setattr"} else names


def _parsed(module: str) -> ast.Module:
    """Return the syntax of a module, that of an empty one if there is no source to be read."""
    spec = _find(module)
    try:
        return ast.parse(Path(spec.origin).read_bytes() if spec and spec.origin else "")
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _find(module: str) -> ModuleSpec | None:
    """Return where a module is, None if it is not found; its packages are not imported for that."""
    spec, places = None, None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        found = (finder.find_spec(name, places) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        places = spec.submodule_search_locations if spec else None
        if spec is None or (places is None and end < len(parts)):
            return None
    return spec
