"""The faults: one file of them for each room, `ROOM.toml`, and how one is put into a copy of the package."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Fault:
    """A change of one place in the source that a test has to notice.

    Attributes:
        room: The room it is in, whose tests have to notice it.
        name: Of the fault, once in its room.
        file: Path in the package.
        before: What stands there, once.
        after: What stands there with the fault.
        meaning: What goes wrong then.
        tests: Test files, `test_file` or `test_file::test_name`, that are run before all others of the room, the
            likeliest first; some are of other rooms, or of the whole.
        survives: Why no test can notice it; empty where one must.
    """

    room: str
    name: str
    file: str
    before: str
    after: str
    meaning: str
    tests: tuple[str, ...] = ()
    survives: str = ""

    @property
    def key(self) -> str:
        """Name of the fault among those of all rooms."""
        return f"{self.room}/{self.name}"

    def applied(self, source: str) -> str:
        """Return a source with the fault.

        Raises:
            ValueError: If the place is not there, or more than once.
        """
        if source.count(self.before) != 1:
            raise ValueError(f"{self.key}: {self.file} has {self.before!r} {source.count(self.before)} times, not once")
        return source.replace(self.before, self.after)


def read_faults(folder: Path = HERE) -> list[Fault]:
    """Return the faults of all rooms."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text())["fault"]:
            found.append(Fault(path.stem, **(entry | {"tests": tuple(entry.get("tests", ()))})))
    return found


def chosen(faults: Sequence[Fault], only: Sequence[str]) -> list[Fault]:
    """Return the faults of the rooms, or of the names, that somebody asks for; all of them if nobody does.

    Raises:
        ValueError: If there is none of such a name.
    """
    for word in only:
        if not any(word in (f.room, f.name, f.key) for f in faults):
            raise ValueError(f"{word}: neither a room with faults nor a fault")
    return [f for f in faults if not only or {f.room, f.name, f.key} & set(only)]


def likeliest_tests(root: Path, fault: Fault) -> list[str]:
    """Return the tests that a fault names, as pytest takes them, relative to the root.

    Raises:
        ValueError: If there is no such file, or more than one, or it has no such test.
    """
    found = []
    for entry in fault.tests:
        name, separator, test = entry.partition("::")
        paths = sorted((root / "tests").rglob(f"{name}.py"))
        if len(paths) != 1:
            raise ValueError(f"{fault.key}: there are {len(paths)} files {name}.py among the tests")
        if test and f"def {test}(" not in paths[0].read_text():
            raise ValueError(f"{fault.key}: {name}.py has no {test}")
        found.append(f"{paths[0].relative_to(root)}{separator}{test}")
    return found
