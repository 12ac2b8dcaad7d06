"""Several seeds in one command: what is read, run, stopped, gone on with, and told at the end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_ppo.cli import main as command
from lightning_ppo.cli import seeds as several
from lightning_ppo.cli import train
from lightning_ppo.cli.seeds import runs_that_fit, take_seeds
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.statistics import over_seeds
from tests.kit.signals import send

TINY = ("env.num_envs=2", "rollout.num_steps=32", "update.minibatch_size=64", "update.epochs=1", "total_env_steps=256")
TINY += ("evaluation.episodes=0", "evaluation.final_episodes=2", "trainer.enable_progress_bar=false")


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        (["seed=3"], []),
        (["seed=1,2,3"], [1, 2, 3]),
        (["seed=[4,2]"], [4, 2]),
        (["seeds=3"], [1, 2, 3]),
        (["seeds=7,9"], [7, 9]),
        (["seeds=1"], [1]),
    ],
)
def test_seeds_are_read(arguments, seeds):
    found, others = take_seeds(["pendulum", *arguments, "rollout.gamma=0.9"])
    assert found == seeds
    assert others == ["pendulum", *([] if seeds else arguments), "rollout.gamma=0.9"]


@pytest.mark.parametrize("argument", ["seeds=many", "seeds=0", "seed=1,two", "seed=1,1", "seeds=1.5"])
def test_seeds_that_cannot_be_read_are_one_line(argument):
    with pytest.raises(ConfigError, match=rf"^{argument}: expected seed=1,2,3 or seeds=5, the number of runs$"):
        take_seeds([argument])


def test_runs_side_by_side_are_as_many_as_the_cores_hold(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(several.shutil, "which", lambda _: None)
    assert runs_that_fit(load()) == 8
    assert runs_that_fit(load([], ["rollout.processes=3", "rollout.overlap=true"])) == 2
    assert runs_that_fit(load([], ["trainer.devices=4"])) == 2
    assert runs_that_fit(load([], ["env.backend=async"])) == 1
    monkeypatch.setattr(several.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert runs_that_fit(load()) == 1 and runs_that_fit(load([], ["trainer.accelerator=cpu"])) == 8


def test_the_end_tells_mean_middle_interval_and_worst():
    text = over_seeds([0.0, 1.0, 2.0, 3.0])
    assert text.startswith("mean 1.5, interquartile mean 1.5 (95 % interval ") and text.endswith("worst 0.0 of 4")
    assert over_seeds([5.0, 5.0]) == ("mean 5.0, interquartile mean 5.0 (95 % interval 5.0 to 5.0), worst 5.0 of 2")


@pytest.mark.ranks
def test_two_seeds_are_two_runs_that_equal_those_of_one_seed_and_are_left_alone_when_over(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    assert train.main([*TINY, "seed=1,2", "run_dir=both"]) == 0
    out = capfd.readouterr().out
    assert "2 seeds, 2 at a time, in both" in out and "interquartile mean" in out and "both/report.html" in out
    summaries = [json.loads(Path(f"both/seed-{seed}/summary.json").read_text()) for seed in (1, 2)]
    assert [summary["seed"] for summary in summaries] == [1, 2]
    assert train.main([*TINY, "seed=2", "run_dir=alone"]) == 0
    alone = json.loads(Path("alone/summary.json").read_text())
    assert alone["train_return_mean"] == summaries[1]["train_return_mean"]
    before = Path("both/seed-1/checkpoints/last.ckpt").stat().st_mtime_ns
    capfd.readouterr()
    assert train.main([*TINY, "seed=1,2", "run_dir=both"]) == 0
    assert "interquartile mean" in capfd.readouterr().out
    assert Path("both/seed-1/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert command(["report", "both", "--output", "page.html"]) == 0
    assert "2 seeds" in Path("page.html").read_text()


def test_a_run_that_fails_is_told_and_does_not_stop_the_others(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = (
        "import sys; print('error: seed 1 is unlucky' if {0} == 1 else 'fine', file=sys.stderr); sys.exit({0} == 1)"
    )

    def start(seed, arguments, parent, aside):
        with open(several._log(parent, seed), "w") as file:
            return subprocess.Popen([sys.executable, "-c", script.format(seed)], stderr=file)

    monkeypatch.setattr(several, "_start", start)
    assert train.main(["seed=1,2", "run_dir=runs"]) == 1
    out = capfd.readouterr().out
    assert "seed 1: error: seed 1 is unlucky" in out and "seed 2: no episode ended" in out


def test_a_signal_reaches_every_run_once_and_the_line_says_how_to_go_on(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wait = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(143)))"
    wait += "; print(1, flush=True); time.sleep(60)"
    children = []

    def start(seed, arguments, parent, aside):
        children.append(subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE, start_new_session=True))
        children[-1].stdout.readline()
        if len(children) == 2:
            threading.Timer(0.2, send, (signal.SIGTERM,)).start()
        return children[-1]

    monkeypatch.setattr(several, "_start", start)
    monkeypatch.setattr(several, "runs_that_fit", lambda config: 2)
    began = time.monotonic()
    assert train.main(["pendulum", "seed=1,2,3", "run_dir=runs"]) == 143
    assert time.monotonic() - began < 20.0
    assert len(children) == 2 and [child.returncode for child in children] == [143, 143]
    for child in children:
        child.stdout.close()
    assert "pendulum seed=1,2,3 run_dir=runs\n" in capfd.readouterr().err


def test_a_folder_of_one_run_does_not_become_that_of_several(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="is the directory of a single run; name another for several seeds"):
        several.train_seeds([1, 2], [f"run_dir={tmp_path}"], "train")


def test_the_interval_of_many_equal_halves_is_that_of_their_mean():
    generator = np.random.default_rng(0)
    values = generator.normal(100.0, 10.0, 400)
    text = over_seeds(values)
    low, high = (float(part) for part in text.split("interval ")[1].split(")")[0].split(" to "))
    assert low < 100.0 < high and high - low < 4.0


def test_a_budget_that_is_no_multiple_of_an_iteration_says_how_far_the_run_goes(tmp_path, capsys):
    assert train.main([*TINY, "total_env_steps=100", f"run_dir={tmp_path / 'odd'}"]) == 0
    told = "total_env_steps: 100 is no multiple of 64; the run ends after 1 iterations, at most 64 steps\n"
    assert capsys.readouterr().out.count(told) == 1
    assert train.main([*TINY, "total_env_steps=64", f"run_dir={tmp_path / 'even'}"]) == 0
    assert "is no multiple" not in capsys.readouterr().out
