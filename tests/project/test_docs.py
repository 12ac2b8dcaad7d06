"""The documentation: its code blocks run, its site builds without a warning, its settings are those of the source.

Each page is run in a directory of its own, its blocks in order, so that later blocks find what earlier ones made.
`lightning-ppo` is called in this process with a budget of a few steps. CONTRIBUTING.md
states the conventions.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lightning_ppo import cli
from lightning_ppo.cli import train
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import load, valid_keys
from lightning_ppo.settings.reference import sections, settings, to_markdown
from lightning_ppo.settings.sections import Config
from tests.kit.pages import BUDGET, ELSEWHERE, Block, blocks_of, commands_of
from tests.kit.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = [
    *("env.num_envs=2", "rollout.num_steps=32", "update.epochs=1", "update.minibatch_size=32", "rollouts_per_epoch=1"),
    *("evaluation.episodes=1", "evaluation.final_episodes=1", "trainer.enable_progress_bar=false"),
]
ONLY_CHECKED = ("trainer.devices", "compile=true", "--print-config")
"""Commands with one of these are not trained: their settings are read and printed."""


def run_command(words: list[str]) -> None:
    if words[:2] in (["lightning-ppo", "train"], ["python", "train.py"]):
        arguments = [re.sub(r"^seeds=\d+$", "seeds=1", word) for word in words[2:]]
        if any(word.startswith(ONLY_CHECKED) for word in arguments):
            assert train.main([word for word in arguments if word != "--print-config"] + ["--print-config"]) == 0
        else:
            resumed = any(word.startswith("resume=") for word in arguments)
            assert train.main([*arguments, *([] if resumed else TINY), BUDGET]) == 0
    elif words[0] == "lightning-ppo":
        cli.make_parser().parse_args(words[1:])
        if "--render" in words or words[1] in ("doctor", "tune"):
            return  # a window cannot be opened everywhere; the tests of these commands run them
        episodes = ["--episodes", "1"] if words[1] == "evaluate" else []
        assert cli.main([*words[1:], *episodes]) == 0
    else:
        assert words[0] in ELSEWHERE, f"do not know how to check: {' '.join(words)}"


def run_python(block: Block) -> None:
    source = re.sub(r"max_epochs=\d+", "max_epochs=1", block.text)
    source = re.sub(r"total_env_steps=[\d_]+", "total_env_steps=5000", source)
    module = types.ModuleType(f"block_{block.line}")
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, f"{block.page.name}:{block.line}", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]


def run_block(block: Block) -> None:
    name = block.file_name
    if name is not None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(block.text)
    if block.language == "yaml":
        path = Path(name or f"block_{block.line}.yaml")
        path.write_text(block.text)
        load([path])
    elif block.language == "python":
        run_python(block)
    elif block.language in ("bash", "sh"):
        for words in commands_of(block):
            run_command(words)
    else:
        raise AssertionError(f"unknown language {block.language!r}")


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty directory that looks like a clone, with what the pages call the reader's own."""
    for name in ("configs", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "my_env.py").write_text("from gymnasium.envs.classic_control import CartPoleEnv as MyEnv\n")
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "tests" / "data" / "sb3_cartpole.zip", tmp_path / "model.zip")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


CASES = [pytest.param(p, marks=[pytest.mark.representative] * (p.stem == "objectives")) for p in PAGES if blocks_of(p)]


@pytest.mark.docs
@pytest.mark.parametrize("page", CASES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:pytorch_lightning.utilities.warnings.PossibleUserWarning")
def test_code_blocks_run(page, workplace, capfd):
    modules = set(sys.modules)
    try:
        for block in blocks_of(page):
            try:
                run_block(block)
            except Exception as error:
                shown = capfd.readouterr()
                raise AssertionError(f"{page.name}:{block.line} failed: {error}\n{shown.err[-800:]}") from error
    finally:
        with contextlib.suppress(KeyError):
            for name in set(sys.modules) - modules:
                if getattr(sys.modules[name], "__file__", None) and str(workplace) in str(sys.modules[name].__file__):
                    del sys.modules[name]


def test_a_block_that_is_wrong_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nraise ValueError('rot')\n```\n\n<!-- not run: why -->\n```python\nalso_rot\n```\n")
    (block,) = blocks_of(page)
    with pytest.raises(ValueError, match="rot"):
        run_block(block)
    with pytest.raises(AssertionError, match="do not know how to check"):
        run_command(["frobnicate", "--all"])


def test_every_setting_of_the_source_is_in_the_reference():
    keys = [setting.key for setting in settings()]
    assert keys == list(dict.fromkeys(keys))
    assert set(keys) == set(valid_keys(Config, ""))
    assert all(setting.meaning for setting in settings()), "a setting without an explanation"
    by_key = {setting.key: setting for setting in settings()}
    assert by_key["env.num_envs"].default == EnvConfig().num_envs
    assert by_key["update.clip_range"].meaning.startswith("Epsilon of the clipped surrogate")
    assert {section.key for section in sections()} >= {"", "env", "update", "policy"}
    assert all(dataclasses.is_dataclass(section) for section in sections())
    assert f"| `seed` | `int` | `1` | {by_key['seed'].meaning} |" in to_markdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation as a site."""
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module, reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("docs")
    options = ["-W", "-q", "-d", str(folder / "cache")]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "site")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return folder / "site"


@pytest.mark.docs
def test_the_site_builds_without_a_warning(site):
    for page in ROOT.glob("docs/*.md"):
        assert (site / f"{page.stem}.html").is_file()
    text = (site / "configuration.html").read_text()
    assert "runs/&lt;env id&gt;/&lt;timestamp&gt;" in text
    assert "update.clip_range" in text and "Epsilon of the clipped surrogate" in text
    text = (site / "api.html").read_text()
    assert 'id="lightning_ppo.PPO.predict"' in text and "(B, *shape)" in text


PROBE = """
const wide = (element) => element.scrollWidth - element.clientWidth;
const seen = Array.from({length: frames.length}, (_, index) => frames[index].document).map((page) => ({
  width: page.documentElement.clientWidth,
  page: wide(page.documentElement),
  blocks: Math.max(0, ...[...page.querySelectorAll("article pre, article .sig")].map(wide)),
  tables: Math.max(0, ...[...page.querySelectorAll(".table-wrapper")].map(wide)),
  pictures: [...page.querySelectorAll("article img")].map((image) => image.naturalWidth),
}));
document.body.append(Object.assign(document.createElement("pre"), {id: "probe", textContent: JSON.stringify(seen)}));
"""
"""Pixels by which what pages show is wider than its place, after all of them have been loaded in frames."""


@pytest.mark.docs
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off(width, site, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no browser: apt install chromium")
    pages = [page.stem for page in sorted(ROOT.glob("docs/*.md"))]
    shown = "".join(f'<iframe width={width} height=900 src="{(site / page).as_uri()}.html"></iframe>' for page in pages)
    harness = tmp_path / "harness.html"
    style = "<style>iframe { border: 0 }</style>"
    harness.write_text(f"<!DOCTYPE html>{style}<body>{shown}<script>onload = () => {{{PROBE}}}</script></body>")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", harness.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200)
    probe = re.search(r'<pre id="probe">(.*?)</pre>', finished.stdout, re.DOTALL)
    assert probe, finished.stderr
    for page, seen in zip(pages, json.loads(probe.group(1)), strict=True):
        assert 0 < seen["width"] <= width, page
        assert (seen["page"], seen["blocks"]) == (0, 0), page
        assert seen["tables"] == 0 or width < 1280, page  # on a telephone tables can be moved sideways
        assert all(seen["pictures"]), page
