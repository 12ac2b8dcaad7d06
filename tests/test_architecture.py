"""The import law of docs/architecture.md, and that the algorithm stays short enough to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_ppo"
IN_NUMPY = ("gru", "lstm", "host_cores")
PURE = ("tree", "rollout", "advantages", "objectives", "normalization", *IN_NUMPY, "recurrence", "networks")
ALGORITHM = ("rollout", "advantages", "objectives", "collector", "stream", "module")


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).glob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]


def uses(room: str, *modules: str) -> set[str]:
    return {
        name
        for file in files(room)
        for name in imports(file)
        for module in modules
        if name == module or name.startswith(f"{module}.")
    }


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_import_torch_and_the_standard_library_only(room):
    allowed = {"torch", "lightning_ppo"} | sys.stdlib_module_names | ({"numpy"} if room in IN_NUMPY else set())
    third_party = {name for file in files(room) for name in imports(file) if name.split(".")[0] not in allowed}
    assert third_party == set()
    others = {f"lightning_ppo.{other}" for other in PURE} | {"lightning_ppo.errors"}
    ours = {n for f in files(room) for n in imports(f) if n.startswith("lightning_ppo.")}
    assert all(any(name == other or name.startswith(f"{other}.") for other in others) for name in ours)


@pytest.mark.parametrize(
    "room", ["envs", "collector", "stream", "policy", "distributions", "evaluation", "video", "report", "config"]
)
def test_rooms_below_the_trainer_do_not_know_lightning(room):
    assert (
        uses(room, "pytorch_lightning", "lightning_fabric", "lightning_ppo.module", "lightning_ppo.callbacks") == set()
    )


def test_the_module_knows_nothing_of_how_data_is_made():
    assert uses("module", "lightning_ppo.collector", "lightning_ppo.stream", "lightning_ppo.datamodule") == set()
    assert uses("module", "lightning_ppo.envs") == set()
    assert uses("stream", "lightning_ppo.module") == set()


def test_only_one_lightning():
    for path in [*PACKAGE.rglob("*.py"), PACKAGE.parent / "train.py"]:
        assert not any(name == "lightning" or name.startswith("lightning.") for name in imports(path)), path


def test_the_algorithm_is_short():
    code = sum(_code_lines(path) for room in ALGORITHM for path in files(room))
    assert code < 700


def _code_lines(path: Path) -> int:
    """Count lines that are neither blank, comment nor docstring."""
    text = path.read_text()
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in documented for n, line in lines)


def test_importing_the_package_is_quick_and_light():
    heavy = ("torch", "gymnasium", "pytorch_lightning")
    code = f"import sys, lightning_ppo; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert output.stdout.strip() == "[]"
