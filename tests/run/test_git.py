"""The commit of the working directory in what a run writes."""

import json
import shutil
import subprocess

import pytest

import lightning_ppo
from lightning_ppo.settings.loading import load
from lightning_ppo.support.git import commit
from tests.kit.commands import SMALL

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(*arguments):
    author = ("-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(("git", *author, *arguments), check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commit_and_changes(project):
    assert commit() is None  # no repository
    git("init", "-q")
    assert commit() is None  # no commit
    (project / "env.py").write_text("one")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "v1")
    assert commit() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (project / "notes.txt").write_text("runs and notes are no changes of the code")
    assert commit()["dirty"] is False
    (project / "env.py").write_text("two")
    assert commit() == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_without_git_nothing_is_said(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_a_run_names_its_commit_and_goes_on_after_another(project):
    (project / "env.py").write_text("one")
    git("init", "-q")
    git("add", "env.py")
    git("commit", "-qm", "first")
    first = git("rev-parse", "HEAD")
    settings = dict(argument.split("=") for argument in SMALL) | {"evaluation.episodes": "0", "run_dir": "run"}
    settings = {key: int(value) if value.isdigit() else value for key, value in settings.items()}
    summary = lightning_ppo.train(settings | {"total_env_steps": 128})
    assert summary["git"] == {"commit": first, "dirty": False}
    assert json.loads((project / "run" / "summary.json").read_text())["git"] == summary["git"]
    assert (project / "run" / "config.yaml").read_text().startswith(f"# git commit {first}\n")
    assert load([project / "run" / "config.yaml"]).total_env_steps == 128
    (project / "env.py").write_text("two")
    again = lightning_ppo.train({"run_dir": "run", "resume": "last", "total_env_steps": 256})
    assert again["git"] == {"commit": first, "dirty": True} and again["env_steps"] > 128
    assert (project / "run" / "config.yaml").read_text().startswith(f"# git commit {first}, with changes\n")
