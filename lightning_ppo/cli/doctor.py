"""Try what works on this machine and installation, and report what to install for the rest."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from lightning_ppo.support.cores import usable_cores
from lightning_ppo.support.errors import one_line
from lightning_ppo.support.packages import EXTRAS, REQUIRED, install, installed
from lightning_ppo.support.program import columns

NAME = "doctor"
HELP = "show versions, devices, compilers, environments and extras, and what is missing for what"
EXAMPLES = (("doctor", "paste its output into a bug report"),)

ENVIRONMENTS = (("CartPole-v1", "classic control"), ("HalfCheetah-v5", "MuJoCo"), ("ALE/Pong-v5", "Atari"))

Row = tuple[str, str]


def examine() -> list[tuple[str, list[Row]]]:
    """Return the findings: sections of (what, how it stands)."""
    return _once(
        [
            ("versions", _versions()),
            ("devices", _devices()),
            ("compiling", [("compile=true", _outcome(_compiler))]),
            (
                "environments",
                [(f"{name} ({env_id})", _outcome(partial(_step, env_id))) for env_id, name in ENVIRONMENTS],
            ),
            (
                "rendering",
                [("display", _display())]
                + [(f"{name} ({env_id})", _outcome(partial(_render, env_id))) for env_id, name in ENVIRONMENTS],
            ),
            ("extras", [_extra(name) for name in EXTRAS]),
        ]
    )


def _once(sections: list[tuple[str, list[Row]]]) -> list[tuple[str, list[Row]]]:
    """Return findings in which the command that installs an extra stands with the extra alone."""
    *others, extras = sections
    needed = {install(name): f"no: needs the extra {name}, see below" for name in EXTRAS}

    def short(found: str) -> str:
        return next((text for command, text in needed.items() if command in found), found)

    return [*((title, [(name, short(found)) for name, found in rows]) for title, rows in others), extras]


def to_text(sections: Sequence[tuple[str, list[Row]]]) -> str:
    """Return the findings as aligned text."""
    lines = iter(columns([row for _, rows in sections for row in rows], "  ").splitlines())
    return "\n\n".join("\n".join([title, *islice(lines, len(rows))]) for title, rows in sections)


def _versions() -> list[Row]:
    from lightning_ppo import __version__

    rows = [("lightning_ppo", __version__), ("python", f"{sys.version.split()[0]} on {platform.platform()}")]
    return rows + [(package, installed(package) or "missing") for package in REQUIRED]


def _devices() -> list[Row]:
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    rows = [
        ("cpu", f"{platform.processor() or platform.machine()}, {usable_cores()} cores usable"),
        ("threads", f"{threads}, by OMP_NUM_THREADS" if threads else "1, or what OMP_NUM_THREADS says"),
    ]
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append(("gpu", ", ".join(gpus) + "; use with trainer.accelerator=gpu" if gpus else "none that torch can use"))
    return rows


def _compiler() -> str:
    from lightning_ppo.speed.fused_linear import cxx_compiler

    found = cxx_compiler()
    return f"ok, with {found}" if found else "no C++ compiler, so training continues uncompiled: install g++"


def _display() -> str:
    chosen = [f"{name}={os.environ[name]}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]
    return ", ".join(chosen) if chosen or sys.platform != "linux" else "none: --video works, --render human does not"


def _step(env_id: str) -> str:
    from lightning_ppo.envs import make_vector_env
    from lightning_ppo.settings.environment import EnvConfig

    env = make_vector_env(EnvConfig(env_id, num_envs=1, stagger=False))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    return "ok"


def _render(env_id: str) -> str:
    from lightning_ppo.evaluation.video import Stage, VideoFile
    from lightning_ppo.settings.environment import EnvConfig

    with Stage(EnvConfig(env_id)) as stage, VideoFile(os.devnull, stage.fps):
        height, width = stage.picture().shape[:2]
    return f"ok, {width} x {height}"


def _outcome(attempt: Callable[[], str]) -> str:
    """Return what an attempt found, or why it failed, on one line."""
    try:
        return attempt()
    except Exception as error:
        return one_line(f"no: {error}")


def _extra(name: str) -> Row:
    packages, purpose, _ = EXTRAS[name]
    missing = [package for package in packages if installed(package) is None]
    if missing:
        return name, f"missing {', '.join(missing)}, for {purpose}: {install(name)}"
    return name, f"ok, for {purpose}: {', '.join(f'{package} {installed(package)}' for package in packages)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the command takes no arguments."""


def run(options: argparse.Namespace) -> int:
    """Look and print."""
    print(to_text(examine()))
    return 0
