"""Which tests run: the short selection, the rest, or all.

Left out of the short selection are tests with the marker of a family, unless they also have the marker
`representative`. Of a test that is marked `exhaustive` it runs a covering set of cases. A test that is named by its id,
or asked for with -k or -m, always runs.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

FAMILIES = ("ranks", "compiled", "learning", "docs", "browser")
SHORT = pytest.StashKey[bool]()
"""Whether a test belongs to the short selection."""


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "which tests run: the short selection, what it leaves out, or all (default: short)"
    parser.addoption("--select", choices=["short", "rest", "all"], default="short", help=text)


def pytest_report_header(config: pytest.Config) -> str:
    return f"tests: {selected(config)}"


def selected(config: pytest.Config) -> str:
    """Return what is asked for: `short`, `rest` or `all`."""
    named = config.option.markexpr or config.option.keyword or any("::" in argument for argument in config.args)
    return "all" if named else config.getoption("select")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    short = short_selection(items)
    for item in items:
        item.stash[SHORT] = item in short
        item.user_properties.append(("short", item in short))
        if group := group_of(item):
            item.add_marker(pytest.mark.xdist_group(group))
    if selected(config) != "all":
        wanted = selected(config) == "short"
        config.hook.pytest_deselected(items=[item for item in items if item.stash[SHORT] != wanted])
        items[:] = [item for item in items if item.stash[SHORT] == wanted]
    if hasattr(config, "workerinput"):  # what takes long begins first, so that no worker is alone with it in the end
        items.sort(key=lambda item: not families_of(item))


def families_of(item: pytest.Item) -> set[str]:
    return {marker.name for marker in item.iter_markers()} & set(FAMILIES)


def group_of(item: pytest.Item) -> str | None:
    """Return the group of tests that one worker runs, one after the other; None for a test that any worker may run.

    Tests that start ranks, which take all cores, are one group; so are those of a file that share a fixture.
    """
    if "ranks" in families_of(item):
        return "ranks"
    fixtures = [definitions[-1] for definitions in item._fixtureinfo.name2fixturedefs.values()]
    shared = {fixture.baseid for fixture in fixtures if fixture.scope != "function" and fixture.baseid.endswith(".py")}
    return min(shared, default="").replace("/", ".") or None


def short_selection(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return the tests of the short selection, which do not depend on the order of the items."""
    found, exhaustive = set(), defaultdict(list)
    for item in sorted(items, key=lambda item: item.nodeid):
        marker = item.get_closest_marker("exhaustive")
        if item.get_closest_marker("representative") or not (marker or families_of(item)):
            found.add(item)
        elif not families_of(item):
            exhaustive[function_of(item), marker.kwargs.get("strength", 1)].append(item)
    for (function, strength), cases in exhaustive.items():
        run = [item.callspec.params for item in found if function_of(item) == function]
        found |= {cases[index] for index in covering([case.callspec.params for case in cases], strength, run)}
    return found


def function_of(item: pytest.Item) -> tuple[str, str]:
    return item.parent.nodeid, getattr(item, "originalname", item.name)


Case = Mapping[str, Any]


def covering(cases: Sequence[Case], strength: int, run: Sequence[Case] = ()) -> list[int]:
    """Return the indices of few cases in which all combinations of `strength` values occur that any of them has.

    Takes the case with the most new combinations until there are none. None is new that cases have which `run` anyway.
    """
    combinations = [combinations_of(case, strength) for case in cases]
    missing = set().union(*combinations).difference(*(combinations_of(case, strength) for case in run))
    chosen = []
    while missing:
        chosen.append(max(range(len(cases)), key=lambda index: len(combinations[index] & missing)))
        missing -= combinations[chosen[-1]]
    return chosen


def combinations_of(case: Case, strength: int) -> set[tuple]:
    values = sorted((name, repr(value)) for name, value in case.items())
    return set(itertools.combinations(values, min(strength, len(values))))
