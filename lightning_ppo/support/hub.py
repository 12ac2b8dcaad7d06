"""Repositories of agents on the Hugging Face Hub, or folders in their place."""

import os
from pathlib import Path
from typing import Any

from lightning_ppo.support.errors import CheckpointError, ConfigError, one_line
from lightning_ppo.support.packages import install

AGENT = "agent.ckpt"
"""The checkpoint in a repository."""


def is_folder(repository: str) -> bool:
    """Return whether a repository is a folder of this machine: one that is there, or a path that says so."""
    return os.path.isdir(repository) or repository.startswith((".", "/", "~"))


def fetch(repository: str, name: str = AGENT, revision: str | None = None) -> Path:
    """Return the path of a file of a repository, downloaded if it is not here yet.

    Raises:
        ConfigError: If the package that speaks with the Hub is missing.
        CheckpointError: If there is no such file, or it cannot be downloaded.
    """
    if is_folder(repository):
        path = Path(repository).expanduser() / name
        if not path.is_file():
            raise CheckpointError(f"{repository}: there is no {name} in this folder")
        return path
    return Path(_asked(repository, "hf_hub_download", repository, name, revision=revision))


def upload(repository: str, folder: Path, private: bool) -> str:
    """Upload the files of a folder into a repository, made if it is not there; return its address.

    Raises:
        ConfigError: If the package that speaks with the Hub is missing.
        CheckpointError: If it cannot be uploaded.
    """
    address = _asked(repository, "create_repo", repository, private=private, exist_ok=True)
    _asked(repository, "upload_folder", repo_id=repository, folder_path=str(folder))
    return str(address)


def _asked(repository: str, function: str, *arguments: Any, **settings: Any) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"{repository}: needs the package huggingface_hub: {install('hub')}") from None
    try:
        return getattr(huggingface_hub, function)(*arguments, **settings)
    except Exception as error:  # its own, and those of an HTTP client that is another one in each of its versions
        raise CheckpointError(f"{repository}: {one_line(error, 200)}") from error
