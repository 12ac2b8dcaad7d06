"""A plugin of pytest that writes down the first test that fails: one that ran, not one that could not be read."""

import os
from pathlib import Path

import pytest

VARIABLE = "MUTANTS_FAILED"
"""Names the file."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = Path(os.environ[VARIABLE])
    if report.failed and not path.exists():
        path.write_text(report.nodeid)
