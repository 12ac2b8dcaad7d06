"""The package as `pip install` brings it: built, and installed into a new environment outside of the clone.

The wheel is built from the sdist, so that both are tested. The new environment sees the packages of this one, all but
this project: nothing is downloaded. Both are made once for all tests of a session.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.once import once
from tests.kit.paths import ROOT

COMMAND = ["lightning-ppo"]
"""How the installed command is called; the first word lies beside the new environment's interpreter."""

TINY = [
    *("env.num_envs=2", "rollout.num_steps=32", "update.epochs=1", "update.minibatch_size=32", "rollouts_per_epoch=1"),
    *("evaluation.episodes=1", "evaluation.final_episodes=1", "trainer.enable_progress_bar=false"),
]


class Archives(NamedTuple):
    """What is published."""

    sdist: Path
    wheel: Path


class Installed(NamedTuple):
    """A new environment with the wheel in it, and an empty folder to work in."""

    programs: Path
    folder: Path

    def __call__(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess:
        """Run the command with arguments; its output is text."""
        return self.run(*COMMAND, *arguments, folder=folder)

    def run(
        self, program: str, *arguments: str, folder: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess:
        """Run a program of the environment, with environment variables besides those of this process."""
        process = self.start(program, *arguments, folder=folder, **variables)
        try:
            out, err = process.communicate(timeout=200)
        finally:
            process.kill()
        assert process.returncode == 0, f"{' '.join(arguments)}: {err[-2000:]}"
        return subprocess.CompletedProcess(process.args, 0, out, err)

    def start(self, program: str, *arguments: str, folder: Path | None = None, **variables: str) -> subprocess.Popen:
        """Start a program of the environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIGHTNING_PPO"))}
        environment = {**kept, "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
        command, pipe = [str(self.programs / program), *arguments], subprocess.PIPE
        return subprocess.Popen(
            command, cwd=folder or self.folder, env=environment, stdout=pipe, stderr=pipe, text=True
        )


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # else pip sees a clone there
    finished = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr[-2000:]


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Archives:
    dist = once(tmp_path_factory, "build", build) / "dist"
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return Archives(sdist, wheel)


def build(folder: Path) -> None:
    """Build from a copy of the sources, in which nothing lies but what would be committed."""
    sources, dist = folder / "sources", folder / "dist"
    dist.mkdir()
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ":!benchmarks/results"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    code = f"import setuptools.build_meta as backend; backend.build_sdist({str(dist)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, check=True, timeout=100)
    (sdist,) = dist.glob("*.tar.gz")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", dist, sdist)


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> Installed:
    def install(root: Path) -> None:
        """Install the wheel, and only then let the environment see the packages of this one: pip sees none of them."""
        venv.create(root, with_pip=False)
        paths = paths_of(root)
        pip("--python", Path(paths["scripts"]) / "python", "install", "--no-index", "--no-deps", archives.wheel)
        # a plain path: the .pth files that lie there, such as that of an editable install, are not read
        here = dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
        (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(here) + "\n")

    root = once(tmp_path_factory, "environment", install)
    return Installed(Path(paths_of(root)["scripts"]), tmp_path_factory.mktemp("empty"))


def paths_of(root: Path) -> dict[str, str]:
    return sysconfig.get_paths(vars={"base": str(root), "platbase": str(root)})
