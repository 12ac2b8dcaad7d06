"""The settings of a run from config files, `key=value` overrides, and a checkpoint to resume; quick, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_ppo.settings import named_configs
from lightning_ppo.settings.existence import check_existence
from lightning_ppo.settings.loading import flat, given_keys, load, load_over, marked, no_option, one_by_one, peek
from lightning_ppo.settings.objects import Objects
from lightning_ppo.settings.sections import Config
from lightning_ppo.settings.trust import check_names
from lightning_ppo.support.errors import ConfigError

FIXED = ("env.id", "objective", "normalize.observations", "normalize.rewards")
"""Settings that a resumed run cannot change, besides those of the networks."""


def as_config(config: Config | str | Path | Mapping[str, Any]) -> Config:
    """Return the settings that `lightning_ppo.train` is given in any of its forms; see there."""
    if isinstance(config, Config):
        return config
    config = read_arguments([config if isinstance(config, Mapping) else str(config)])
    check_existence(config)
    return config


def read_arguments(arguments: Sequence[str | Mapping[str, Any]]) -> Config:
    """Return the settings that config files and overrides describe; a resumed run brings its own.

    Args:
        arguments: Names and paths of configs; `key=value` texts, or mappings of settings, nested or with dotted keys.

    Raises:
        ConfigError: If an argument or setting is wrong.
    """
    objects = Objects()
    mappings = [objects.take_out(a) for a in arguments if isinstance(a, Mapping)]
    trust, arguments = _take_trust([a for a in arguments if isinstance(a, str)])
    files = [a for a in arguments if "=" not in a]
    texts = [a for a in arguments if "=" in a]
    overrides: list[str | Mapping[str, Any]] = [*texts, *(nested for m in mappings for nested in one_by_one(m))]
    for name in files:
        if name.startswith("-"):
            raise ConfigError(f"{no_option(name)}; the options are --help, --print-config and --trust")
    given = [named_configs.find(name) for name in files]
    paths = given or [named_configs.find(named_configs.DEFAULT)]
    resume = peek(given, overrides, "resume")
    if resume is None:
        if trust:
            raise ConfigError("--trust: only names in a checkpoint given as resume=PATH need it")
        return objects.put_back(load(paths, overrides))
    found = _find_checkpoint(str(resume), peek(given, overrides, "run_dir"))
    if found is None:
        return objects.put_back(load(paths, overrides))
    run_dir, checkpoint, content = found
    saved = check_names(content, checkpoint, trust, given_keys(given, overrides)).get("config")
    if saved is None:
        raise ConfigError(f"resume: {checkpoint} was not written by `train` and names no settings")
    config = objects.put_back(load_over(saved, given, overrides))
    config = replace(config, run_dir=str(run_dir), resume=str(checkpoint))
    _check_resumable(load_over(saved), config)
    return config


def _take_trust(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of `--trust NAME` and `--trust=NAME`, and the other arguments."""
    trust, others, left = [], [], iter(arguments)
    for argument in left:
        option, separator, value = argument.partition("=")
        if option != "--trust":
            others.append(argument)
            continue
        name = value if separator else next(left, "")
        if not name:
            raise ConfigError("--trust: expected a name after it")
        trust.append(name)
    return trust, others


def _find_checkpoint(resume: str, run_dir: Any) -> tuple[Path, Path, dict[str, Any]] | None:
    """Return the run directory, the checkpoint to resume and its contents, or None where `auto` finds none.

    Only a run's own directory is gone on with.
    """
    from lightning_ppo.support.checkpoint_files import read_checkpoint, read_newest, versions
    from lightning_ppo.support.distributed import print_once

    checkpoint = Path(resume)
    if resume in ("last", "auto"):
        if run_dir is None:
            raise ConfigError(f"resume: `{resume}` needs run_dir=PATH, the directory of the run to resume")
        checkpoint = Path(run_dir) / "checkpoints" / "last.ckpt"
        if resume == "auto" and not versions(checkpoint):
            return None
    if not versions(checkpoint):
        raise ConfigError(f"resume: there is no checkpoint {checkpoint}")
    if resume in ("last", "auto"):
        checkpoint, content, problems = read_newest(checkpoint)
        if problems:
            print_once(f"resume: {problems}; using the version before it, {checkpoint}")
    else:
        content = read_checkpoint(checkpoint)
    owner = checkpoint.resolve().parent.parent
    owned = checkpoint.resolve().parent.name == "checkpoints" and (owner / "config.yaml").is_file()
    if run_dir is None and not owned:
        raise ConfigError(f"resume: {checkpoint} is in no run directory; name one with run_dir=PATH")
    target = owner if run_dir is None else Path(run_dir)
    if target.exists() and any(target.iterdir()) and not (owned and target.resolve() == owner):
        raise ConfigError(f"run_dir: {target} is not empty and {checkpoint} is not its own; name another")
    return target, checkpoint, content


def _check_resumable(saved: Config, config: Config) -> None:
    """Refuse to go on with another task or network, and print which settings changed."""
    from lightning_ppo.support.distributed import print_once

    old, new = (flat(marked(c)) for c in (saved, config))
    for key in sorted(set(old) | set(new)):
        if old.get(key) == new.get(key) or key in ("resume", "run_dir"):
            continue
        if key in FIXED or key.startswith("policy."):
            raise ConfigError(f"{key}: the run to resume has {old.get(key)!r}, not {new.get(key)!r}; start a new run")
        print_once(f"resume: {key} changes from {old.get(key)} to {new.get(key)}")
