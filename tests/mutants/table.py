"""The table of faults and the tests that notice them, between two marks of a page."""

from collections.abc import Sequence
from pathlib import Path

from tests.mutants.faults import Fault
from tests.mutants.running import Results

BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
HEAD = f"""\
# Testing

## Mutants

{BEGIN}
{END}
"""


def write_table(page: Path, faults: Sequence[Fault], results: Results) -> None:
    """Write the table into a page, which is made where there is none."""
    text = page.read_text() if page.is_file() else HEAD
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n## Mutants\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(faults, results)}{END}{rest.split(END)[1]}")


def table(faults: Sequence[Fault], results: Results) -> str:
    """Return how many faults were noticed, and by which tests."""
    found = {fault: results[fault.key] for fault in faults}
    tried = {fault: result for fault, result in found.items() if result is not None}
    counts = {name: sum(r.outcome == name for r in tried.values()) for name in ("killed", "survived", "undecided")}
    rooms = sorted({fault.room for fault in faults})
    lines = [
        "`python -m tests.mutants` puts the faults below into a copy of the package, one at a time, and runs the short "
        "selection of the room's tests until one fails. `-j 2` tries two at a time, `--only NAME` those of a room or a "
        "single one. What it finds is kept in `tests/mutants/results.json`, so a run that was stopped goes on, and a "
        "fault is tried again only when its file, or the test that noticed it, has changed. The faults are data, "
        "`tests/mutants/ROOM.toml`. A fault of yours is one more entry there; if it survives, a test is missing.",
        "",
        f"{len(faults)} faults in {len(rooms)} rooms, of which {len(tried)} were tried: {counts['killed']} are noticed "
        f"by a failing test, {counts['survived']} survive, {counts['undecided']} are undecided.",
        "",
        "| room | fault | noticed by |",
        "|---|---|---|",
    ]
    for fault, result in tried.items():
        name = result.by.rpartition("/")[2] if result.outcome == "killed" else f"**{result.outcome}** {fault.survives}"
        code = f"`{name}`" if result.outcome == "killed" else name.strip()
        lines.append(f"| {fault.room} | {fault.meaning} | {code.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"
