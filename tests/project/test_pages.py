"""What pages show is what was measured: tables and pictures follow from rows. The API reference has every public name.

`python benchmarks/front_page.py`, `diagnosis.py --draw` and `gallery.py --draw`, and the `report` commands of the
benchmarks, write the tables and draw the pictures anew.
"""

import ast
import importlib
import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from statistics import mean, stdev

import pytest

import lightning_ppo
from benchmarks import diagnosis, front_page, gallery, learning, speed
from lightning_ppo.interop.export import EXPORTERS
from lightning_ppo.settings import algorithm, networks
from lightning_ppo.settings import sections as top
from lightning_ppo.settings.moved import new_path
from tests.kit.paths import ROOT

DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
REGISTRIES = (
    *(algorithm.OBJECTIVES, algorithm.LOSS_TERMS, algorithm.OPTIMIZERS, networks.DISTRIBUTIONS, networks.CORES),
    *(networks.ENCODERS, networks.NETWORKS, top.LOGGERS, top.CALLBACKS, EXPORTERS),
)


def between(page: Path, name: str) -> list[str]:
    _, _, rest = page.read_text().partition(f"<!-- {name}: begin -->\n")
    return rest.partition(f"\n<!-- {name}: end -->")[0].split("\n")


@pytest.mark.parametrize("name", front_page.PAGES)
def test_the_comparison_is_that_of_the_rows(name):
    assert between(ROOT / name, "comparison") == front_page.comparison()


def test_the_comparison_follows_the_rows(monkeypatch):
    rows = {"universal": (90.0, 110.0), "sb3": (1.0, 2.0)}
    table = {t: {e: [{"train_return_mean": v} for v in values] for e, values in rows.items()} for t in front_page.TASKS}
    monkeypatch.setattr(learning, "load_results", lambda _: table)
    # means 100 and 1.5, deviations 14.1 and 0.71; CleanRL's own figure stays
    assert front_page.returns_table()[2] == "| HalfCheetah | **100 ± 14** | 1.5 ± 0.7 | 1,443 | 5,784 |"


def test_tables_of_other_pages_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "draw", lambda *_: None)
    page = tmp_path / "results.md"
    page.write_text((DOCS / "results.md").read_text())
    experiments = re.search(r"report docs/results\.md --experiments ([\w. -]+)", page.read_text()).group(1).split()
    learning.report(page, experiments)
    assert between(page, "table") == between(DOCS / "results.md", "table")
    assert between(DOCS / "curves.md", "diagnosis") == diagnosis.table()
    raced = speed.table(learning.read_rows(learning.RESULTS / "speed.csv"))
    assert " ".join(between(DOCS / "speed.md", "race")).split() == " ".join(raced).split()  # lines may be wrapped


def test_figures_in_the_text_of_the_results_are_those_of_the_rows():
    def returns(task: str, experiment: str) -> list[float]:
        rows = learning.load_results([experiment])[f"{task}-v5"][experiment]
        return [float(row["train_return_mean"]) for row in rows]

    text = re.sub(r"\s+", " ", (DOCS / "results.md").read_text())
    number = r"(-?\d+(?:,\d{3})*(?:\.\d)?)"
    compared = re.findall(rf"(\w+) {number} ± {number} and {number} ± {number}", text)
    assert [task for task, *_ in compared] == ["HalfCheetah", "Hopper", "Walker2d"]
    for task, *figures in compared:
        expected = [f(returns(task, name)) for name in ("parity", "sb3") for f in (mean, stdev)]
        assert figures == [f"{value:,.0f}" for value in expected], task
    missed = re.findall(rf"(\w+) \({number}; Stable-Baselines3 {number}\)", text)
    assert [task for task, *_ in missed] == ["Walker2d", "InvertedDoublePendulum"]
    for task, *figures in missed:
        assert figures == [f"{mean(returns(task, name)):,.0f}" for name in ("universal", "sb3")], task


@pytest.mark.docs
@pytest.mark.parametrize("module", [front_page, diagnosis, gallery], ids=lambda module: module.__name__.split(".")[-1])
def test_pictures_are_what_is_drawn_from_the_rows(module, tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    module.draw(tmp_path)
    drawn = sorted(tmp_path.iterdir())
    assert drawn
    for picture in drawn:
        kept = (PICTURES / picture.name).read_text()
        if f"Matplotlib v{matplotlib.__version__}," not in kept:
            pytest.skip("drawn by another version of matplotlib")
        assert picture.read_text() == kept, picture.name


def test_every_picture_is_shown_described_and_small():
    shown = {}
    for page in PAGES:
        for text, path in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text()):
            shown.setdefault((page.parent / path).resolve(), []).append(text)
    assert all(path.is_file() and all(texts) for path, texts in shown.items())
    assert set(PICTURES.iterdir()) <= set(shown)
    assert max(path.stat().st_size for path in shown) < 1_000_000


def test_the_moving_picture_is_of_the_agents_in_its_rows():
    first, last = learning.read_rows(learning.RESULTS / "film.csv")
    assert int(first["env_steps"]) == 64 * 64  # one update with the defaults
    assert float(last["eval_return_mean"]) > float(first["eval_return_mean"]) + 1000
    for page in front_page.PAGES:
        assert f"after one update and after {int(last['env_steps']):,} steps](" in (ROOT / page).read_text()


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_are_readable_in_light_and_in_dark(path):
    text = path.read_text()
    schemes = text.split("prefers-color-scheme:dark")
    light, dark = (dict(re.findall(r"--(\w+):(#\w{6})", scheme)) for scheme in schemes)
    used = set(re.findall(r"var\(--(\w+)", text))
    assert {"ground", "ink"} <= used <= light.keys() == dark.keys()
    assert not re.findall(r"(?:fill|stroke): #", text)  # a colour that does not follow the scheme
    for scheme in (light, dark):
        assert contrast(scheme["ink"], scheme["ground"]) > 7
        assert all(contrast(scheme[name], scheme["ground"]) > 3 for name in used - {"ground", "faint"})


def test_the_gallery_shows_every_example():
    page = (DOCS / "gallery.md").read_text()
    listed = (ROOT / "examples" / "README.md").read_text()
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and path.suffix in (".py", ".sh", ".ipynb"):
            name = path.relative_to(ROOT / "examples").as_posix()
            assert f"](../examples/{name})" in page and f"]({name})" in listed, name


def resolve(path: str) -> object:
    module, _, name = path.rpartition(".")
    home = importlib.import_module(module)
    return getattr(home, name) if hasattr(home, name) else importlib.import_module(path)


def documented() -> dict[str, object]:
    page = (DOCS / "api.md").read_text()
    paths = re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)$", page, re.MULTILINE)
    assert len(set(paths)) == len(paths)
    return {path: resolve(path) for path in paths}


def subclasses(*bases: str) -> set[str]:
    """Return the public classes of the package that derive from classes of these names."""
    classes = {}
    for path in sorted((ROOT / "lightning_ppo").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                home = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                classes[node.name] = home, {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    names, found = set(bases), -1
    while found != len(names):
        found = len(names)
        names |= {name for name, (_, above) in classes.items() if above & names}
    return {f"{classes[name][0]}.{name}" for name in names & classes.keys() if not name.startswith("_")}


def sections(settings: object) -> set[type]:
    """Return the dataclasses of settings and of what they hold."""
    held = [getattr(settings, field.name) for field in fields(settings)]
    return {type(settings)}.union(*(sections(value) for value in held if is_dataclass(value)))


def public() -> set[str]:
    """Return the paths of what users import, name in settings, derive from or catch."""
    paths = {f"lightning_ppo.{name}" for name in lightning_ppo.__all__}
    for registry in REGISTRIES:
        paths |= {*registry.names.values(), f"{registry.base.__module__}.{registry.base.__qualname__}"}
    paths |= {f"{section.__module__}.{section.__qualname__}" for section in sections(top.Config())}
    for page in (*PAGES, *sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "configs").rglob("*.yaml"))):
        text = page.read_text()
        paths |= set(re.findall(r"\blightning_ppo(?:\.[a-z_0-9]+)+[.:][A-Z]\w+", text))
        for module, names in re.findall(r"^ *from (lightning_ppo[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
            paths |= {f"{module}.{name.strip()}" for name in names.split(",")}
    paths |= subclasses("Callback", "Checkpoint", "ModelCheckpoint", "ProgressBar", "Logger", "TensorBoardLogger")
    paths |= subclasses("PolicyObjective", "LossTerm", "ActionHead", "Exporter", "UserError", "TorchVectorEnv")
    paths = {new_path(path.replace(":", ".")) or path.replace(":", ".") for path in paths}
    return {path for path in paths if path.startswith("lightning_ppo.") and not inspect.ismodule(resolve(path))}


def test_the_api_reference_has_every_public_name():
    known = set(map(id, documented().values()))
    assert sorted(path for path in public() if id(resolve(path)) not in known) == []


def test_what_the_api_reference_shows_is_documented():
    def shown(thing: object) -> list[str]:
        members = vars(thing).items() if inspect.isclass(thing) else ()
        kinds = (property, classmethod, staticmethod)
        return [n for n, value in members if n[0] != "_" and (callable(value) or isinstance(value, kinds))]

    def silent(path: str, thing: object) -> list[str]:
        named = {path: thing} | {f"{path}.{name}": getattr(thing, name) for name in shown(thing)}
        return [name for name, value in named.items() if not inspect.getdoc(value)]

    assert [name for path, thing in documented().items() for name in silent(path, thing)] == []


def test_a_class_that_is_not_in_the_reference_would_be_noticed(monkeypatch):
    monkeypatch.setitem(algorithm.LOSS_TERMS.names, "mine", "lightning_ppo.update.budget.Budget")
    assert "lightning_ppo.update.budget.Budget" in public()
    assert id(sys.modules["lightning_ppo.update.budget"].Budget) not in set(map(id, documented().values()))
