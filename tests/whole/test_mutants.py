"""The list of faults fits the source, and `python -m tests.mutants` tells those that tests notice from others."""

import ast
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import running
from tests.mutants.__main__ import main
from tests.mutants.faults import HERE, ROOT, chosen, likeliest_tests, read_faults
from tests.mutants.running import Results

FAULTS = read_faults()
ROOMS = {path.parent.name for path in (ROOT / "lightning_ppo").glob("*/__init__.py")}


def test_every_room_has_at_least_three_faults():
    found = Counter(fault.room for fault in FAULTS)
    assert found.keys() == ROOMS
    assert min(found.values()) >= 3
    assert len(FAULTS) >= 70


def test_every_fault_changes_one_place_in_its_room():
    sources = {name: (ROOT / "lightning_ppo" / name).read_text() for name in {fault.file for fault in FAULTS}}
    trees = {name: ast.dump(ast.parse(source)) for name, source in sources.items()}
    for fault in FAULTS:
        changed = fault.applied(sources[fault.file])  # raises where the place is not there, or not once
        assert ast.dump(ast.parse(changed)) != trees[fault.file], f"{fault.key} changes nothing"
        assert fault.file.startswith(f"{fault.room}/"), fault.key
        assert fault.meaning, fault.key


def test_names_are_given_once_and_tests_exist():
    assert [key for key, count in Counter(fault.key for fault in FAULTS).items() if count > 1] == []
    for fault in FAULTS:
        likeliest_tests(ROOT, fault)  # raises where there is no such file, or several


def test_at_most_two_survivors_are_explained():
    assert sum(bool(fault.survives) for fault in FAULTS) <= 2


def test_faults_are_chosen_by_room_and_by_name():
    room = [fault for fault in FAULTS if fault.room == "report"]
    assert chosen(FAULTS, ["report"]) == room
    assert chosen(FAULTS, [room[0].name]) == chosen(FAULTS, [room[0].key]) == room[:1]
    assert chosen(FAULTS, []) == FAULTS
    with pytest.raises(ValueError, match="reprot: neither a room"):
        chosen(FAULTS, ["reprot"])


SOURCE = """\
def total(numbers):
    return sum(numbers)


def largest(numbers):
    return max(numbers)


def wait():
    return 0
"""
TESTS = """\
import os

import pytest

from lightning_ppo.sums import add


@pytest.fixture
def total():
    return add.total([1, 2])


def test_total(total):
    assert total == 3


def test_largest():
    add.largest([1, 2])


def test_wait():
    add.wait()
"""
LIST = """\
[[fault]]
name = "first-left-out"
file = "sums/add.py"
before = "sum(numbers)"
after = "sum(numbers[1:])"
meaning = "the first number is left out"
tests = ["test_add"]

[[fault]]
name = "smallest"
file = "sums/add.py"
before = "max(numbers)"
after = "min(numbers)"
meaning = "the smallest number is returned"

[[fault]]
name = "unreadable"
file = "sums/add.py"
before = "return max(numbers)"
after = "return max(numbers"
meaning = "Python cannot read the file"

[[fault]]
name = "endless"
file = "sums/add.py"
before = "return 0"
after = "return [None for _ in iter(int, 1)]"
meaning = "a call never returns"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # which take longer than these tests
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(running, "SLOW", ("pytest",))
    files = {
        "lightning_ppo/__init__.py": "",
        "lightning_ppo/sums/__init__.py": "",
        "lightning_ppo/sums/add.py": SOURCE,
        "tests/__init__.py": "",
        "tests/sums/__init__.py": "",
        "tests/sums/test_add.py": TESTS,
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "docs").mkdir()
    shutil.copytree(HERE, tmp_path / "tests" / "mutants", ignore=shutil.ignore_patterns("*.toml", "*.json"))
    (tmp_path / "tests" / "mutants" / "sums.toml").write_text(LIST)
    return tmp_path


def run(project: Path, *arguments: str) -> int:
    return main(arguments, project, project / "tests" / "mutants")


def test_a_fault_is_killed_by_a_failing_test_alone(project, capsys):
    assert run(project, "--only", "endless", "--timeout", "1") == 1
    capsys.readouterr()
    assert run(project, "--only", "first-left-out", "--only", "smallest", "--only", "unreadable", "--jobs", "2") == 1
    assert "1 of 3 faults are killed" in capsys.readouterr().out
    results = Results(project / "tests" / "mutants" / "results.json")
    outcomes = {name: results[f"sums/{name}"] for name in ("first-left-out", "smallest", "unreadable", "endless")}
    assert [result.outcome for result in outcomes.values()] == ["killed", "survived", "undecided", "undecided"]
    assert outcomes["first-left-out"].by == "tests/sums/test_add.py::test_total"
    assert (project / "lightning_ppo" / "sums" / "add.py").read_text() == SOURCE
    page = (project / "docs" / "testing.md").read_text()
    assert "| sums | the first number is left out | `test_add.py::test_total` |" in page
    assert "1 are noticed by a failing test, 1 survive, 2 are undecided" in page


def test_what_still_holds_is_left_out_and_what_changed_is_tried_again(project, capsys):
    test, name = project / "tests" / "sums" / "test_add.py", "first-left-out"
    assert run(project, "--only", name) == 0
    capsys.readouterr()
    assert run(project, "--only", name) == 0
    assert "killed   " not in capsys.readouterr().out  # nothing was tried
    test.write_text(TESTS.replace("assert total == 3", "assert total"))
    assert run(project, "--only", name) == 1
    assert "survived" in capsys.readouterr().out
    test.write_text(TESTS.replace("assert total == 3", "assert total == 4"))  # fails without a fault, too
    assert run(project, "--only", name) == 1
    assert "fails without a fault: tests/sums/test_add.py::test_total" in capsys.readouterr().out
