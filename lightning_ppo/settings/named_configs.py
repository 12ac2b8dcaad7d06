"""The configs that come with the package, found by bare name from any folder."""

from pathlib import Path

from lightning_ppo.support.errors import ConfigError, nearest

DEFAULT = "cartpole"
"""The config if none is named."""

_PACKAGE = Path(__file__).parent.parent
# an installed package has them inside, a clone beside
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Return the names of all configs, such as `halfcheetah` and `paper/mujoco`."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find(name: str) -> Path:
    """Return the file that a name or path stands for; one in the current folder wins over the package's.

    Args:
        name: The path of a .yaml file, or the name of a config with or without its ending.

    Raises:
        ConfigError: If there is no such file.
    """
    path = Path(name)
    candidates = [path] if path.suffix in (".yaml", ".yml") else [Path(f"{name}.yaml"), Path(f"{name}.yml")]
    if not path.is_absolute():
        candidates.append(FOLDER / candidates[0])
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = names()
    beside = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    bare = path.with_suffix("").name
    near = bare if bare in known else nearest(name, [*beside, *known])
    raise ConfigError(f"{name}: there is no such config; did you mean {near}?")
