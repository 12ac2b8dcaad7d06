"""Checkpoint files: written so that a crash cannot damage them, read so that a damaged one cannot do harm."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_ppo.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames, so that the target is always whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace the file at `path` with the checkpoint, or leave it as it was."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a checkpoint on the CPU; nothing but plain data and tensors is ever unpickled.

    Raises:
        CheckpointError: If the file is missing, damaged, holds anything else, or is no checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint{_alternative(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason}){_alternative(path)}") from None
    if not isinstance(content, dict) or "ppo" not in content or "hyper_parameters" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of lightning_ppo{_alternative(path)}")
    return content


def _alternative(path: Path) -> str:
    others = [p for p in sorted(path.parent.glob("*.ckpt")) if p.name != path.name] if path.parent.is_dir() else []
    return f"; {others[0]} exists beside it" if others else ""
