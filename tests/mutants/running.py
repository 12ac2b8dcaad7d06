"""Run tests in a copy of the project that has a fault."""

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.faults import Fault, likeliest_tests
from tests.mutants.watch import VARIABLE

LEFT_OUT = shutil.ignore_patterns(
    *(".git", "__pycache__", ".venv", ".venvs", ".*_cache", "runs", "lightning_logs", "build", "dist", "_build")
)
PACKAGE = "lightning_ppo"
SLOW = ("torch", "pytorch_lightning", "torchmetrics", "gymnasium.vector", "omegaconf", "tensorboard", "pytest")
"""What takes long to import, and has no faults."""
OF_ANOTHER_PYTEST = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST", "PYTEST_RUN")
TEST_SECONDS = 100
"""That a single test may take before it fails."""


@dataclass(frozen=True)
class Result:
    """What became of a fault.

    Attributes:
        outcome: `killed` by a failing test; `survived` all that were run; `undecided`: the tests took too long, or
            ended otherwise than with a verdict, or the test that failed fails without the fault, too.
        by: The test that failed.
        seconds: Wall-clock time.
        of: Digest of the changed file, the fault, and the file of the test that failed.
    """

    outcome: str
    by: str = ""
    seconds: float = 0.0
    of: str = ""


class Results:
    """What became of the faults, in a file that is written after each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._results: dict[str, Result] = {}
        if path.is_file():
            self._results = {key: Result(**entry) for key, entry in json.loads(path.read_text()).items()}

    def __getitem__(self, key: str) -> Result | None:
        return self._results.get(key)

    def put(self, key: str, result: Result) -> None:
        """Write down a result."""
        with self._lock:
            self._results[key] = result
            lines = [f"{json.dumps(name)}: {json.dumps(asdict(self._results[name]))}" for name in sorted(self._results)]
            self.path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


class Copy:
    """A copy of the project, to be changed.

    Args:
        root: The project.
    """

    def __init__(self, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True)
        self.root = Path(self._folder.name) / "project"
        shutil.copytree(root, self.root, ignore=LEFT_OUT)
        self._written = 0
        self._nursery: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """Remove the copy."""
        if self._nursery is not None:
            self._nursery.kill()
            self._nursery.communicate()
        self._folder.cleanup()

    @contextlib.contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """Have the fault in the copy."""
        path = self.root / PACKAGE / fault.file
        source, times = path.read_text(), path.stat()
        path.write_text(fault.applied(source))
        # compiled files are known by the second and the size of their source
        self._written += 1
        os.utime(path, (self._written, self._written))
        try:
            yield
        finally:
            path.write_text(source)
            os.utime(path, (times.st_atime, times.st_mtime))

    def first_failure(self, tests: Sequence[str], timeout: float, exitfirst: bool = True) -> tuple[str | None, int]:
        """Run tests and return the first that failed, None if none did, and pytest's exit status; -1 after `timeout`.

        Args:
            tests: Files, folders or single tests.
            timeout: Seconds.
            exitfirst: Stop at the first failure.
        """
        folder = Path(self._folder.name)
        failed = folder / "failed"
        failed.unlink(missing_ok=True)
        arguments = ["-p", "tests.mutants.watch", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=no"]
        arguments += ["-o", f"timeout={TEST_SECONDS}", "-o", "short_limit=1000", f"--basetemp={folder / 'tmp'}"]
        arguments += [*(["-x"] if exitfirst else []), *tests]
        self._nursery = self._nursery or self._start(failed)
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(f"{json.dumps(arguments)}\n".encode())
        self._nursery.stdin.flush()
        child, status = int(self._nursery.stdout.readline()), -1
        if select.select([self._nursery.stdout], [], [], timeout)[0]:
            status = int(self._nursery.stdout.readline())
        with contextlib.suppress(ProcessLookupError):  # and what it has started
            os.killpg(child, signal.SIGKILL)
        if status == -1:
            self._nursery.stdout.readline()
        return (failed.read_text() if failed.exists() else None), status

    def _start(self, failed: Path) -> subprocess.Popen[bytes]:
        own = {VARIABLE: str(failed), "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        outer = {name: value for name, value in os.environ.items() if not name.startswith(OF_ANOTHER_PYTEST)}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.nursery", *SLOW],
            cwd=self.root,
            env={**outer, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )


def digest(root: Path, fault: Fault, by: str) -> str:
    """Return what a result depends on."""
    test = root / by.partition("::")[0]
    parts = [(root / PACKAGE / fault.file).read_bytes(), fault.before.encode(), fault.after.encode()]
    parts.append(test.read_bytes() if by and test.is_file() else b"")
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def holds(root: Path, fault: Fault, result: Result | None) -> bool:
    """Return whether a fault was killed, and neither its file nor the test has changed since."""
    return result is not None and result.outcome == "killed" and result.of == digest(root, fault, result.by)


def try_fault(copy: Copy, fault: Fault, before: Result | None, timeout: float) -> Result:
    """Return what becomes of a fault; the test that noticed it last time comes first, then the likeliest, then all.

    Args:
        copy: Of the project.
        fault: The fault.
        before: What became of it last time.
        timeout: Seconds for all tests.
    """
    started = time.perf_counter()
    killer = [before.by] if before is not None and before.by else []
    steps = [killer, *([test] for test in likeliest_tests(copy.root, fault))]
    if (copy.root / "tests" / fault.room).is_dir():
        steps.append([f"tests/{fault.room}"])
    outcome, by = "survived", ""
    with copy.with_fault(fault):
        while steps and outcome == "survived":
            tests = steps.pop(0)
            left = timeout - (time.perf_counter() - started)
            failed, status = copy.first_failure(tests, max(left, 1.0)) if tests else (None, 0)
            named = any("::" in test for test in tests[:1])
            if failed is not None and not named and copy.first_failure([failed], TEST_SECONDS)[0] is None:
                steps.insert(0, [*tests, "--deselect", failed])  # chance, as on a machine that is busy
            elif failed is not None:
                outcome, by = "killed", failed
            # 0: all passed; 4 and 5: the test that noticed it last time is not there any more, nothing was selected
            elif status not in (0, 5) and not (status == 4 and tests is killer):
                outcome = "undecided"
    return Result(outcome, by, round(time.perf_counter() - started, 1), digest(copy.root, fault, by))
