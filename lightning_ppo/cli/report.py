"""`report RUN_DIR ...`: one HTML page about one or more runs."""

import argparse

NAME = "report"
HELP = "write one HTML page about one or more runs: results, curves, settings, versions"
EXAMPLES = (
    ("report runs/mine", "writes runs/mine/report.html"),
    ("report runs/seeds", "all runs in a folder, as `train seeds=5` leaves it"),
    ("report runs/a runs/b --output report.html", "overlaid; seeds of one config in a band"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", help="a run directory of `train`, or a folder of some"
    )
    parser.add_argument("--output", metavar="FILE", help="the page (default: report.html in the first folder)")


def run(options: argparse.Namespace) -> int:
    """Read, draw and write."""
    from pathlib import Path

    from lightning_ppo.report import find_runs, make_page, read_run

    runs = [read_run(path) for given in dict.fromkeys(options.run_dirs) for path in find_runs(given)]
    target = Path(options.output or Path(options.run_dirs[0]) / "report.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(make_page(runs), encoding="utf-8")
    print(target)
    return 0
