"""The report: what it computes from run directories, and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lightning_ppo.cli import main as command
from lightning_ppo.report import make_page, read_run
from lightning_ppo.report.charts import nice_ticks, short, tick_labels
from lightning_ppo.report.runs import POINTS, changed_settings, group_runs
from lightning_ppo.settings.loading import load, to_yaml

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def make_run(
    path: Path, slope: float = 1.0, seed: int = 1, settings: tuple[str, ...] = (), ended: bool = True, offset: int = 0
) -> Path:
    """Write a run whose training return at step s is slope * s / 1000, from 1000 to 100,000 steps."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(load([], [f"seed={seed}", f"run_dir={path}", *settings])))
    lines = ["step,rollout/return_mean,loss/policy,eval/return_mean,update/clip_range"]
    for step in range(1000 + offset, 100_001, 1000):
        evaluated = f"{slope * step / 500}" if step % 20_000 == 0 else ""
        lines.append(f"{step},{slope * step / 1000},{'nan' if step == 5000 else 0.01 / step},{evaluated},0.2")
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    if ended:
        summary = {
            **{"env_id": "CartPole-v1", "seed": seed, "env_steps": 100_000, "env_steps_per_second": 1234.5},
            **{"fit_seconds": 125.0, "collect_seconds": 25.0, "update_seconds": 75.0},
            **{"train_return_mean": 100.0 * slope, "train_return_std": 2.0, "eval_episodes": 10},
            **{"eval_return_mean": None, "eval_return_std": None, "versions": {"torch": f"2.{seed}"}},
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two settings, three and one seeds."""
    three = [make_run(tmp_path / f"a{seed}", slope, seed) for seed, slope in ((3, 1.5), (1, 0.5), (2, 1.0))]
    return [*three, make_run(tmp_path / "b", 0.25, 1, ("rollout.gamma=0.9",))]


# numbers


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 100_000.0, [0, 25_000, 50_000, 75_000, 100_000]),
        (0.0, 0.83, [0, 0.25, 0.5, 0.75, 1.0]),
        (-180.0, -20.0, [-200, -150, -100, -50, 0]),
        (5.0, 5.0, [4.5, 4.75, 5.0, 5.25, 5.5]),
        (0.0, 0.0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short():
    values = (0.0, 0.25, 500.0, 20_000.0, 1_500_000.0, 3e-5, -2e-4)
    assert [short(v) for v in values] == ["0", "0.25", "500", "20k", "1.5M", "3e-5", "-2e-4"]
    assert tick_labels([0.0, 0.001, 0.002]) == ["0", "1e-3", "2e-3"]


def test_seeds_are_one_group_with_a_band(runs):
    groups = group_runs([read_run(path) for path in runs])
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [
        ("gamma=0.995", [1, 2, 3]),
        ("gamma=0.9", [1]),
    ]
    steps, mean, low, high = groups[0].band("rollout/return_mean")
    assert len(steps) == POINTS
    np.testing.assert_allclose(mean, steps / 1000)  # slopes 0.5, 1 and 1.5
    np.testing.assert_allclose(low, 0.5 * steps / 1000)
    np.testing.assert_allclose(high, 1.5 * steps / 1000)
    alone = groups[1].band("rollout/return_mean")
    assert len(alone[0]) == 100 and np.array_equal(alone[1], alone[2])
    assert groups[0].band("no/such/column") is None


def test_what_does_not_change_learning_makes_no_group_of_its_own(tmp_path):
    beside = ("checkpoint.every_env_steps=1000", "checkpoint.keep=3", "evaluation.episodes=3")
    paths = [make_run(tmp_path / "a", 1.0, 1), make_run(tmp_path / "b", 2.0, 2, beside)]
    assert [len(group.runs) for group in group_runs([read_run(path) for path in paths])] == [2]


def test_a_short_run_counts_only_where_it_has_values(tmp_path):
    make_run(tmp_path / "a", 1.0, 1)
    short_run = make_run(tmp_path / "b", 3.0, 2)
    rows = (short_run / "metrics.csv").read_text().splitlines()
    (short_run / "metrics.csv").write_text("\n".join(rows[:51]) + "\n")  # up to step 50,000
    (group,) = group_runs([read_run(tmp_path / name) for name in "ab"])
    steps, mean, _, high = group.band("rollout/return_mean")
    np.testing.assert_allclose(mean[steps < 50_000], 2 * steps[steps < 50_000] / 1000)
    np.testing.assert_allclose(mean[steps > 51_000], steps[steps > 51_000] / 1000)
    np.testing.assert_allclose(high[steps > 51_000], steps[steps > 51_000] / 1000)


def test_ends_that_differ_by_a_logging_interval_belong_to_all_seeds(tmp_path):
    make_run(tmp_path / "a", 1.0, 1)
    make_run(tmp_path / "b", 1.0, 2, offset=-300)
    (group,) = group_runs([read_run(tmp_path / name) for name in "ab"])
    steps, _, low, high = group.band("rollout/return_mean")
    assert steps[0] == 700 and high[0] - low[0] == pytest.approx(0.3)  # the other seed's first value is at 1000


def test_values_that_are_not_finite_are_left_out(runs):
    steps, values = read_run(runs[0]).curves["loss/policy"]
    assert 5000 not in steps and len(steps) == 99 and np.isfinite(values).all()


def test_only_changed_settings_are_named(runs):
    changed = changed_settings(read_run(runs[3]))
    assert changed == {"env.id": "CartPole-v1", "total_env_steps": 1_000_000, "rollout.gamma": 0.9}


# the page


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_table_has_means_over_seeds(runs):
    text = text_of(make_page([read_run(path) for path in runs]))
    # 50, 100 and 150: mean 100, standard deviation 50; the evaluation's last values are 100, 200 and 300
    # the middle half of three are all of them
    assert "gamma=0.995 3 seeds 100 ± 50 200 ± 100" in text
    told = "mean 100.0, interquartile mean 100.0 (95 % interval 50.0 to 150.0), worst 50.0 of 3"
    assert f"gamma=0.995, training return: {told}" in text
    assert "gamma=0.995, evaluation return: mean 200.0, " in text and "gamma=0.9, training return" not in text
    assert f"seed 2 {runs[2]} 100 ± 2 200 100,000 1,234 2 min 5 s (25% collecting)" in text
    assert "Constant throughout a run: update/clip_range 0.2." in text
    assert "torch 2.1, 2.2, 2.3" in text


def test_a_run_that_has_not_ended_is_shown_as_far_as_it_is(tmp_path):
    text = text_of(make_page([read_run(make_run(tmp_path / "a", ended=False))]))
    assert "100,000 (not ended)" in text and "seed 1" in text


def test_environments_have_sections_of_their_own(tmp_path, runs):
    other = make_run(tmp_path / "c", 1.0, 1, ("env.id=Pendulum-v1",))
    page = make_page([read_run(path) for path in (*runs, other)])
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["CartPole-v1", "Pendulum-v1", "Versions"]


def test_nothing_is_loaded_and_nothing_is_let_through(tmp_path):
    evil = make_run(tmp_path / "<img src=x>", 1.0, 1, ("env.id=</script><script>alert(1)</script>:E",))
    page = make_page([read_run(evil)])
    assert "<script>alert" not in page and "<img" not in page
    assert not re.search(r"<[^>]*\b(src|href)=|@import|url\(|https?://", page)
    assert "default-src 'none'" in page


def test_the_command_writes_the_page(runs, tmp_path, capsys):
    assert command(["report", *map(str, runs)]) == 0
    target = Path(capsys.readouterr().out.strip())
    assert target == runs[0] / "report.html" and target.read_text().startswith("<!DOCTYPE html>")
    assert command(["report", str(runs[0]), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").is_file()


def test_what_is_no_run_directory_is_one_clear_line(tmp_path, capsys):
    assert command(["report", str(tmp_path)]) == 1
    expected = f"error: {tmp_path}: no run directory, which holds config.yaml and metrics.csv\n"
    assert capsys.readouterr().err == expected


def test_a_folder_of_runs_stands_for_all_of_them(runs, tmp_path):
    assert command(["report", str(tmp_path)]) == 0
    page, expected = (tmp_path / "report.html").read_text(), make_page([read_run(path) for path in sorted(runs)])
    assert text_of(page).split("Curves")[1] == text_of(expected).split("Curves")[1]


# in a browser

PROBE = """<script>
const plots = [...document.querySelectorAll(".plot")], box = plots[0].getBoundingClientRect();
plots[0].dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 5}));
const seen = {
  charts: [...document.querySelectorAll(".chart b")].map((title) => title.textContent),
  columns: getComputedStyle(document.querySelector(".charts")).gridTemplateColumns.split(" ").length,
  box: [box.left, box.top, box.width, box.height],
  tip: [...plots[0].querySelectorAll(".tip div")].map((row) => row.textContent),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  width: document.documentElement.clientWidth,
  fonts: [...document.querySelectorAll(".x, .y, td, th, b")].map((e) => parseFloat(getComputedStyle(e).fontSize)),
};
plots[0].dispatchEvent(new PointerEvent("pointerleave"));
const result = Object.assign(document.createElement("pre"), {id: "probe", textContent: JSON.stringify(seen)});
parent.document.body.append(result);
</script>"""
"""Runs in the page, which is shown in a frame, because a window cannot be narrower than 500 pixels."""

HEIGHT = 2400


def browse(page: Path, width: int, folder: Path, *flags: str) -> tuple[dict, np.ndarray]:
    """Return what the probe saw and a screenshot (height, width, 3)."""
    from PIL import Image

    if CHROMIUM is None:
        pytest.skip("there is no browser: apt install chromium")
    harness = folder / "harness.html"
    frame = f'<iframe style="border: 0" width={width} height={HEIGHT} srcdoc="{html.escape(page.read_text() + PROBE)}">'
    harness.write_text(f'<!DOCTYPE html><body style="margin: 0">{frame}</iframe></body>')
    picture = folder / "page.png"
    common = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size=1280,{HEIGHT}"),
    ]
    for last in ([f"--screenshot={picture}", harness.as_uri()], ["--dump-dom", harness.as_uri()]):
        finished = subprocess.run([*common, *last], capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, finished.stderr
    probe = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', finished.stdout, re.DOTALL).group(1)))
    return probe, np.asarray(Image.open(picture).convert("RGB")).astype(int)[:, :width]


def line_height(picture: np.ndarray, box: list[float], colour: tuple[int, int, int]) -> float:
    """Return where a line crosses the middle of a plot, as a share of its height from below."""
    left, top, width, height = box
    column = picture[round(top) : round(top + height), round(left + width / 2)]
    rows = np.flatnonzero(np.abs(column - colour).max(-1) < 40)
    assert len(rows), f"no line of colour {colour}"
    return 1.0 - rows.mean() / height


@pytest.mark.browser
@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (400, 1)])
def test_a_browser_draws_it(width, columns, runs, tmp_path):
    page = tmp_path / "page.html"
    command(["report", *map(str, runs), "--output", str(page)])
    probe, picture = browse(page, width, tmp_path)
    assert probe["charts"] == ["Training return", "Evaluation return", "Policy loss"]
    assert (probe["width"], probe["overflow"], probe["columns"]) == (width, 0, columns)
    assert min(probe["fonts"]) >= 12
    # a pointer in the middle, at 50,000 steps: three seeds at 25, 50 and 75, the other settings at 12.5
    steps, first, second = probe["tip"]
    assert re.match(r"(49|50),\d{3} steps", steps)
    means = re.search(r"([\d.]+) \(([\d.]+) to ([\d.]+)\) gamma=0.995", first)
    assert [float(value) for value in means.groups()] == pytest.approx([50, 25, 75], rel=0.02)
    assert float(re.match(r" ([\d.]+) gamma=0.9", second).group(1)) == pytest.approx(12.5, rel=0.04)
    # the lines stand where they belong on an axis from 0 to 150
    assert line_height(picture, probe["box"], (31, 111, 196)) == pytest.approx(50 / 150, abs=0.02)
    assert line_height(picture, probe["box"], (200, 80, 30)) == pytest.approx(12.5 / 150, abs=0.02)


@pytest.mark.browser
def test_it_is_dark_where_the_reader_wants_it_dark(runs, tmp_path):
    page = tmp_path / "page.html"
    command(["report", str(runs[0]), "--output", str(page)])
    (_, light), (_, dark) = (
        browse(page, 1280, tmp_path, *flags) for flags in ([], ["--blink-settings=preferredColorScheme=0"])
    )
    assert light[2, 2].min() > 240 and dark[2, 2].max() < 40
    # text stands out from the ground in both
    assert np.ptp(light[:120].sum(-1)) > 500 and np.ptp(dark[:120].sum(-1)) > 500


def test_a_run_that_is_named_twice_counts_once(runs, capsys):
    assert command(["report", str(runs[0]), str(runs[0])]) == 0
    assert "CartPole-v1 · 1 run<" in Path(capsys.readouterr().out.strip()).read_text()
