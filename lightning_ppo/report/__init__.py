"""One self-contained HTML page about one or more run directories."""

from lightning_ppo.report.page import make_page
from lightning_ppo.report.runs import Run, find_runs, read_run

__all__ = ["Run", "find_runs", "make_page", "read_run"]
