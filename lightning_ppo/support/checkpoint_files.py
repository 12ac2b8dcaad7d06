"""Checkpoint files: written so that a crash cannot damage them, read so that a damaged one cannot do harm."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_ppo.support.errors import CheckpointError, DamagedCheckpointError, one_line
from lightning_ppo.support.files import former, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames, so that a file is always whole; checks what it reads.

    Args:
        keep: Versions kept of each file that is written again: itself and, before it, `NAME-1.ckpt` and so on.
    """

    def __init__(self, keep: int = 1) -> None:
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace the file at `path` with the checkpoint, or leave it as it was.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        # a zip archive, which holds a checksum of each of its parts
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            with replacing(path, "wb", self.keep) as file:
                file.write(content.getbuffer())
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be written: {error.strerror}; what was saved before is intact"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Return the contents of a checkpoint on the CPU; see `read_checkpoint`."""
        return _read(Path(path))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a checkpoint on the CPU; nothing but plain data and tensors is ever unpickled.

    Raises:
        CheckpointError: If the file is missing, damaged, holds anything else, or is no checkpoint of this package.
    """
    path = Path(path)
    content = _read(path)
    if not isinstance(content, dict) or "ppo" not in content or "hyper_parameters" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of lightning_ppo")
    return content


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: no such checkpoint{_alternative(path)}")
    damage = _damage(path)
    if damage is not None:
        raise DamagedCheckpointError(f"{path}: damaged, or not a checkpoint ({damage}){_alternative(path)}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else _reason(error)
        raise CheckpointError(
            f"{path}: whole, but holds objects ({what}); only plain data and tensors are loaded"
        ) from None
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint ({_reason(error)})") from None


def read_newest(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], str]:
    """Return the newest version of a checkpoint that is whole, its contents, and what is wrong with newer ones, if any.

    Raises:
        CheckpointError: If there is no version, none is whole, or the newest whole one cannot be loaded.
    """
    problems: list[str] = []
    for version in versions(path):
        try:
            return version, read_checkpoint(version), "; ".join(problems)
        except DamagedCheckpointError as error:
            problems.append(str(error).partition("; ")[0])
    raise CheckpointError("; ".join(problems) or f"there is no checkpoint {path}")


def versions(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that hold a checkpoint or its former versions, newest first."""
    path = Path(path)
    ages = [re.fullmatch(rf"{re.escape(path.stem)}-(\d+)", p.stem) for p in path.parent.glob(f"*{path.suffix}")]
    found = [path, *(former(path, age) for age in sorted(int(match[1]) for match in ages if match))]
    return [version for version in found if version.is_file()]


def set_damaged_aside(path: str | os.PathLike[str]) -> None:
    """Rename versions of a checkpoint that are damaged, so that they do not push out one that is whole."""
    for version in versions(path):
        if _damage(version) is not None:
            os.replace(version, version.with_name(f"{version.name}.damaged"))


def _damage(path: Path) -> str | None:
    """Return what is wrong with a file by the checksums it holds, which torch does not compare."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # whatever damaged headers lead zipfile to
        return _reason(error)
    return None if part is None else f"the checksum of {part} is wrong"


def _reason(error: Exception) -> str:
    return one_line(error, 120) or type(error).__name__


def _alternative(path: Path) -> str:
    others = [*versions(path), *sorted(path.parent.glob("*.ckpt"))] if path.parent.is_dir() else []
    whole = next((other for other in others if other.name != path.name and _damage(other) is None), None)
    return f"; {whole} beside it is intact" if whole else ""
