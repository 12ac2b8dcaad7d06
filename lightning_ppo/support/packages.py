"""The packages that this one builds on, and the extras that bring others."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

REQUIRED = ("torch", "pytorch-lightning", "gymnasium", "numpy", "torchmetrics", "omegaconf", "tensorboard")


class Extra(NamedTuple):
    """An extra of pyproject.toml."""

    packages: tuple[str, ...]
    purpose: str
    modules: tuple[str, ...] = ()
    """What an environment fails to import without it."""


EXTRAS = {
    "mujoco": Extra(("mujoco", "imageio"), "MuJoCo environments such as HalfCheetah-v5", ("mujoco", "imageio")),
    "box2d": Extra(("box2d",), "LunarLander-v3 and BipedalWalker-v3", ("Box2D",)),
    "atari": Extra(("ale-py",), "Atari environments, ALE/...", ("ale_py", "opencv")),
    "envpool": Extra(("envpool",), "environments stepped in C++ threads", ("envpool",)),
    "jax": Extra(
        ("jax", "brax", "playground", "gymnax"),
        "simulators in JAX: brax:ant, playground:CartpoleBalance, gymnax:CartPole-v1",
        ("jax", "brax", "mujoco_playground", "gymnax", "six"),
    ),
    "minigrid": Extra(("minigrid",), "MiniGrid environments, configs/minigrid_memory.yaml"),
    "video": Extra(("imageio-ffmpeg", "pygame-ce"), "evaluate --video and --render, the RecordVideo callback"),
    "export": Extra(("onnx", "onnxscript", "onnxruntime"), "export --format onnx"),
    "search": Extra(("optuna",), "the search for settings in examples/"),
    "hub": Extra(("huggingface-hub",), "push, pull and PPO.from_hub", ("huggingface_hub",)),
    "wandb": Extra(("wandb",), "loggers: [wandb]"),
    "mlflow": Extra(("mlflow-skinny", "sqlalchemy", "alembic"), "loggers: [mlflow]"),
    "docs": Extra(("sphinx", "furo", "myst-parser"), "building the documentation site"),
    "benchmark": Extra(("matplotlib",), "the plots of benchmarks/learning.py"),
}


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and the packages that decide results."""
    found = {package: installed(package) for package in ("lightning-ppo", *REQUIRED, "mujoco")}
    return {"python": sys.version.split()[0]} | {name: number for name, number in found.items() if number is not None}


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'lightning-ppo[{extra}]'"
