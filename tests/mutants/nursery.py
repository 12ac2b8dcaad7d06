"""A process that has imported what takes long, and runs pytest in children of its own, one after the other.

Most of the time that it takes to notice a fault goes into importing torch and Lightning. What has a fault, the package,
is imported in the child.
"""

import contextlib
import importlib
import json
import os
import sys


def main() -> None:
    """Import the modules that are named; then run what each line asks for, and answer with the child and its status."""
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(json.loads(line)))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(arguments: list[str]) -> int:
    """Run pytest in a session of its own, without a word, and return its exit status."""
    import pytest

    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return int(pytest.main(arguments))


if __name__ == "__main__":
    main()
