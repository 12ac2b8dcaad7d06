"""The laws of docs/architecture.md: who may import whom, what is private, how long a file gets, and where tests lie."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

PACKAGE = ROOT / "lightning_ppo"
ROOMS = (
    *("support", "settings", "speed", "rollout", "envs", "policy", "update", "evaluation", "collection"),
    *("run", "interop", "report", "cli"),
)
"""From the bottom to the top; a room imports from those before it."""

TESTS = ROOT / "tests"
FOLDERS_OF_TESTS = {*ROOMS, "whole", "project"}

LIGHTNING = ("pytorch_lightning", "lightning_fabric")
FILES = sorted(PACKAGE.rglob("*.py"))
MAXIMUM_LINES = 330
TABLES = ("settings/environment.py", "settings/algorithm.py")
"""Files that are lists of settings, which are read entry by entry."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_rooms_are_those_of_the_list():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_from_those_below_them(room):
    below = {*ROOMS[: ROOMS.index(room)], room}
    for path in (PACKAGE / room).rglob("*.py"):
        others = {name.split(".")[1] for name in imports(path) if name.startswith("lightning_ppo.")}
        assert others & set(ROOMS) <= below, f"{name_of(path)} imports from {others & set(ROOMS) - below}"


def test_the_update_knows_nothing_of_how_data_is_made():
    for path in (PACKAGE / "update").rglob("*.py"):
        assert not any(name.startswith(("lightning_ppo.envs", "lightning_ppo.collection")) for name in imports(path))


@pytest.mark.parametrize("part", ["envs", "rollout", "policy", "settings", "report", "collection/collector.py"])
def test_what_is_below_the_trainer_does_not_know_lightning(part):
    for path in [PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"):
        known = {name for name in imports(path) if name.split(".")[0] in LIGHTNING}
        assert not known - {"pytorch_lightning.utilities.rank_zero", *RANK_ZERO}, f"{name_of(path)} imports {known}"


RANK_ZERO = {f"pytorch_lightning.utilities.rank_zero.{name}" for name in ("rank_zero_warn", "rank_zero_only")}
"""Telling something once is not knowing the Trainer."""


def test_only_one_lightning():
    for path in [*FILES, PACKAGE.parent / "train.py"]:
        assert not any(name == "lightning" or name.startswith("lightning.") for name in imports(path)), path


def own_private_names() -> set[str]:
    """Return the private names that the package itself defines."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_other_projects_are_used_in_speed_alone():
    own = own_private_names() | {"_replace", "_asdict", "_fields"}
    for path in FILES:
        if room_of(path) == "speed":
            continue
        foreign = {
            name
            for name in imports(path)
            if not name.startswith("lightning_ppo") and any(is_private(part) for part in name.split("."))
        }
        foreign |= {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own
        }
        assert foreign == set(), f"{name_of(path)} uses {foreign}"


def test_private_names_stay_in_their_file():
    for path in FILES:
        taken = {n for n in imports(path) if n.startswith("lightning_ppo.") and is_private(n.rpartition(".")[2])}
        assert taken == set(), f"{name_of(path)} imports {taken}"


def test_files_have_one_idea_each():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES if name_of(path) not in TABLES}
    assert {name: length for name, length in lengths.items() if length > MAXIMUM_LINES} == {}


def test_the_package_list_is_complete():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    root = PACKAGE.parent
    rooms = {".".join(path.parent.relative_to(root).parts) for path in PACKAGE.rglob("__init__.py")}
    folders = {path.parent.relative_to(root).as_posix() for path in (root / "configs").rglob("*.yaml")}
    configs = {f"lightning_ppo.{folder.replace('/', '.')}": folder for folder in folders}
    assert set(settings["packages"]) == rooms | set(configs)
    assert settings["package-dir"] == configs


def test_importing_the_package_is_quick_and_light():
    heavy = ("torch", "gymnasium", "pytorch_lightning")
    code = f"import sys, lightning_ppo; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert output.stdout.strip() == "[]"


# tests


def is_test(path: Path) -> bool:
    return path.name.startswith("test_") or path.name.endswith("_test.py")


def test_tests_lie_in_the_room_that_they_test_or_with_the_whole_or_the_project():
    assert {path.parent.name for path in TESTS.rglob("*.py") if is_test(path)} == FOLDERS_OF_TESTS
    assert {path.name for path in TESTS.glob("*.py")} == {"__init__.py", "conftest.py"}


def test_tests_share_what_is_in_the_kit_and_nothing_else():
    for path in TESTS.rglob("*.py"):
        used = {name for name in imports(path) if name.startswith("tests.")}
        # a class that is named by its path is imported, too
        used |= {".".join(parts) for parts in re.findall(r"\b(tests)\.(\w+)[.:](\w+)", path.read_text())}
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        of_tests = {name for name in used if name.split(".")[1] in FOLDERS_OF_TESTS}
        foreign = {name for name in of_tests if not f"{own}.".startswith(f"{name}.")}
        assert foreign == set(), f"{own} takes {foreign}; move it to tests/kit"
