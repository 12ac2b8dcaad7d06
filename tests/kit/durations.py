"""Write the table of durations in docs/testing.md.

`python -m pytest -n 2 --dist loadgroup --select all --junitxml=times.xml && python -m tests.kit.durations times.xml`
measures on an idle machine.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.kit.paths import ROOT

PAGE = ROOT / "docs" / "testing.md"
MARKS = "<!-- durations -->\n", "<!-- end of durations -->\n"
HEAD = "| file | cases | seconds | of these short: cases | seconds | what costs most |\n|---|---:|---:|---:|---:|---|\n"


class Test(NamedTuple):
    """One case, with its setup and teardown."""

    file: str
    function: str
    seconds: float
    short: bool


def read(report: Path) -> list[Test]:
    """Return the tests of a report of `pytest --junitxml`, without those that were skipped."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            file = case.get("classname", "").removeprefix("tests.").replace(".", "/") + ".py"
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            function = re.split(r"[\[@]", case.get("name", ""))[0]
            found.append(Test(file, function, float(case.get("time", 0.0)), properties.get("short") == "True"))
    return found


def table(tests: list[Test]) -> str:
    """Return the rows by the seconds of their files, and their sum."""
    files = defaultdict(list)
    for test in tests:
        files[test.file].append(test)
    rows = sorted(files.items(), key=lambda item: -seconds_of(item[1]))
    return HEAD + "".join(row(f"`{file}`", own, costs(own)) for file, own in rows) + row("all", tests, "")


def row(name: str, tests: list[Test], text: str) -> str:
    short = [test for test in tests if test.short]
    cells = (name, len(tests), f"{seconds_of(tests):.1f}", len(short), f"{seconds_of(short):.1f}", text)
    return f"| {' | '.join(map(str, cells))} |\n"


def costs(tests: list[Test]) -> str:
    """Return the two functions that take longest, with their seconds and cases, if that is at least a second."""
    functions = defaultdict(list)
    for test in tests:
        functions[test.function].append(test)
    longest = sorted(functions.items(), key=lambda item: -seconds_of(item[1]))[:2]
    return ", ".join(f"`{name}` {seconds_of(own):.1f} ({len(own)})" for name, own in longest if seconds_of(own) >= 1.0)


def seconds_of(tests: list[Test]) -> float:
    return sum(test.seconds for test in tests)


def main(report: str, page: Path = PAGE) -> None:
    """Put the table between its marks."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}{table(read(Path(report)))}{MARKS[1]}{after}")


if __name__ == "__main__":
    main(sys.argv[1])
