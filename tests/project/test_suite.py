"""The suite itself: which tests the short selection has, how long one may take, and that a signal ends it."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from itertools import product

import pytest

from tests.kit import durations
from tests.kit.limits import Spent
from tests.kit.paths import ROOT
from tests.kit.selection import FAMILIES, covering, families_of

PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
MARKERS = {re.match(r"\w+", marker).group() for marker in PYTEST["markers"]}


def test_every_family_is_declared_and_has_a_representative(request):
    assert {*FAMILIES, "exhaustive", "representative", "shortcut"} == MARKERS
    items = request.session.items
    if {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")} != {item.path.parent.name for item in items}:
        pytest.skip("the whole suite has not been collected")
    found = [families_of(item) for item in items if item.get_closest_marker("representative")]
    assert set().union(*found) == {*FAMILIES} - {"browser"}  # which not everyone has


def test_covering_sets_have_every_combination_and_few_cases():
    cases = [{"a": a, "b": b, "c": c} for a, b, c in product(range(4), "xyz", [True, False])]
    assert len(covering(cases, 0)) == 1
    for strength, fewest in ((1, 4), (2, 12), (3, 24)):
        chosen = [cases[index] for index in covering(cases, strength)]
        for names in (("a", "b"), ("a", "c"), ("b", "c")) if strength == 2 else (("a",), ("b",), ("c",)):
            assert {tuple(c[n] for n in names) for c in chosen} == {tuple(c[n] for n in names) for c in cases}
        assert fewest <= len(chosen) <= fewest + 2
    # combinations that no case has are not asked for
    assert sorted(covering([{"a": 1, "b": 1}, {"a": 2, "b": 2}], 2)) == [0, 1]
    # nor are those of cases that run anyway
    assert covering([{"a": 1}, {"a": 2}], 1, [{"a": 1}]) == [1]


def test_computing_and_waiting_have_limits_and_a_busy_machine_does_not_count():
    assert Spent(10.1, 10.2, 0.0).exceeds(10.0) and not Spent(9.9, 29.0, 60.0).exceeds(10.0)
    assert Spent(0.0, 31.0, 31.0).exceeds(10.0) and not Spent(9.0, 200.0, 3.0).exceeds(10.0)


PLUGINS = ("selection", "limits", "signals")
SUITE = """
import time

import pytest

def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def test_quick():
    time.sleep(0.3)

def test_slow():
    compute(0.3)

@pytest.mark.ranks
@pytest.mark.parametrize("one", [pytest.param(1, marks=pytest.mark.representative), 2])
def test_ranks(one):
    pass

@pytest.mark.exhaustive
@pytest.mark.parametrize("one", [1, 2])
@pytest.mark.parametrize("two", [1, 2, 3])
def test_many(one, two):
    pass

@pytest.mark.browser
def test_browser():
    compute(0.3)
"""


def run_pytest(folder, *arguments: str) -> tuple[int, str]:
    """Run the suite above with the plugins of the kit."""
    (folder / "test_it.py").write_text(SUITE)
    plugins = [argument for name in PLUGINS for argument in ("-p", f"tests.kit.{name}")]
    options = ["--rootdir", str(folder), "-p", "no:randomly", "-vv", "-o", "short_limit=0.2", "-o", "addopts="]
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in MARKERS))
    command = [sys.executable, "-m", "pytest", *plugins, *options, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


def outcomes(output: str) -> dict[str, str]:
    return dict(re.findall(r"^test_it.py::(\S+) (PASSED|FAILED)", output, re.MULTILINE))


def test_selections_are_parts_of_the_whole_and_only_the_short_one_has_a_limit(tmp_path):
    short, rest, all_ = (outcomes(run_pytest(tmp_path, "--select", name)[1]) for name in ("short", "rest", "all"))
    many = {name for name in short if name.startswith("test_many")}
    assert set(short) - many == {"test_quick", "test_slow", "test_ranks[1]"} and len(many) == 3
    assert {"test_ranks[2]", "test_browser"} < set(rest)
    assert not set(short) & set(rest) and set(short) | set(rest) == set(all_) and len(all_) == 11
    assert {name for name, outcome in short.items() if outcome == "FAILED"} == {"test_slow"}
    assert {*rest.values(), *all_.values()} == {"PASSED"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["test_it.py::test_browser"], {"test_browser"}),
        (["-m", "ranks"], {"test_ranks[1]", "test_ranks[2]"}),
        (["-k", "browser"], {"test_browser"}),
    ],
)
def test_what_is_named_runs(arguments, names, tmp_path):
    code, output = run_pytest(tmp_path, *arguments)
    assert (code, set(outcomes(output))) == (0, names)


def test_the_table_of_durations_replaces_the_one_before(tmp_path):
    page, report = tmp_path / "page.md", tmp_path / "times.xml"
    first, last = durations.MARKS
    page.write_text(f"before\n{first}| old |\n{last}after\n")
    run_pytest(tmp_path, "--select", "all", "-n", "1", "--dist", "loadgroup", f"--junitxml={report}")
    for _ in range(2):
        durations.main(str(report), page)
    before, start, head, rule, row, total, end, after = page.read_text().splitlines()
    assert (before, start, end, after) == ("before", first.strip(), last.strip(), "after") and head.count(
        "|"
    ) == rule.count("|") == 7
    name, cases, seconds, short, *_ = row.strip("| ").split(" | ")
    assert (name, cases, short) == ("`test_it.py`", "11", "6") and float(seconds) >= 0.9
    assert total.startswith("| all | 11 |")


TRAINS = """
import os
from pathlib import Path

from lightning_ppo.cli import train

def test_that_trains():
    Path("pid").write_text(str(os.getpid()))
    small = ["env.num_envs=2", "rollout.num_steps=8", "update.minibatch_size=8", "evaluation.episodes=0"]
    assert train.main([*small, "rollouts_per_epoch=100000", "run_dir=run", "trainer.enable_progress_bar=false"]) == 143

def test_that_follows():
    Path("followed").touch()
"""


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("number", "workers"),
    [
        *((signal.SIGTERM, []), (signal.SIGINT, []), (signal.SIGTERM, ["-n", "1"]), (signal.SIGINT, ["-n", "1"])),
    ],
)
def test_a_signal_ends_the_tests_while_one_of_them_trains(number, workers, tmp_path):
    (tmp_path / "test_it.py").write_text(TRAINS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.kit.signals", "-p", "no:randomly", *workers]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 100
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        # a terminal sends Ctrl-C to all of them; what ends first decides how the other ends
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.wait(timeout=100) in ({1, 2, 128 + number} if workers else {2, 128 + number})
    assert metrics.exists() and not (tmp_path / "followed").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
