"""`python -m tests.mutants`: put each fault into a copy of the package, run tests, and tell which faults survive."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.faults import HERE, ROOT, Fault, chosen, read_faults
from tests.mutants.running import Copy, Results, holds, try_fault
from tests.mutants.table import write_table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description="Put each fault of tests/mutants/ROOM.toml into a copy of the package, run the tests of its room "
        "until one fails, and tell which faults survive. What was found stays in tests/mutants/results.json: faults "
        "whose file and test have not changed since are left out, so that a run that was stopped goes on. Killing two "
        "hundred faults takes about half an hour on two cores.",
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="a room or a fault; may be repeated"
    )
    parser.add_argument("-j", "--jobs", metavar="N", type=int, default=1, help="faults at a time (default: 1)")
    parser.add_argument("--all", action="store_true", help="try those again, too, whose result still holds")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=600.0, help="for the tests of one fault (default: 600)"
    )
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None, root: Path = ROOT, folder: Path = HERE, page: Path | None = None
) -> int:
    """Try faults and return how many of them are not killed, at most 1.

    Args:
        arguments: Of the command line.
        root: The project.
        folder: Of the lists of faults, and of the results.
        page: That has the table; None takes docs/testing.md.
    """
    options = parse(arguments)
    everything = read_faults(folder)
    faults, results = chosen(everything, options.only), Results(folder / "results.json")
    due = [f for f in faults if options.all or not holds(root, f, results[f.key])]
    copies: SimpleQueue[Copy] = SimpleQueue()
    for _ in range(options.jobs):
        copies.put(Copy(root))

    def attempt(fault: Fault) -> None:
        copy = copies.get()
        try:
            result = try_fault(copy, fault, results[fault.key], options.timeout)
        finally:
            copies.put(copy)
        results.put(fault.key, result)
        print(f"{result.outcome:9}  {result.seconds:5.1f} s  {fault.key}  {result.by}", flush=True)

    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(attempt, due))
        _doubt(copies.get(), due, results, options.timeout)
    finally:
        while not copies.empty():
            copies.get().close()
    write_table(page or root / "docs" / "testing.md", everything, results)
    left = [f for f in faults if (result := results[f.key]) is None or result.outcome != "killed"]
    for fault in left:
        print(f"not killed: {fault.key}: {fault.meaning}{f' ({fault.survives})' if fault.survives else ''}")
    print(f"{len(faults) - len(left)} of {len(faults)} faults are killed")
    return int(any(not fault.survives for fault in left))


def _doubt(copy: Copy, faults: Sequence[Fault], results: Results, timeout: float) -> None:
    """Run the tests that failed once more without any fault; who fails there has killed nothing."""
    killed = {fault: result for fault in faults if (result := results[fault.key]) and result.outcome == "killed"}
    tests = sorted({result.by for result in killed.values()})
    try:
        while tests:
            failed, status = copy.first_failure(tests, 10 * timeout)
            if failed is None:
                if status != 0:
                    print(f"the tests that failed could not be run without a fault: exit status {status}")
                return
            print(f"fails without a fault: {failed}")
            tests.remove(failed)
            for fault, result in killed.items():
                if result.by == failed:
                    results.put(fault.key, replace(result, outcome="undecided"))
    finally:
        copy.close()


if __name__ == "__main__":
    sys.exit(main())
