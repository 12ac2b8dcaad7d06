"""Load modules and data modules from checkpoints that name nothing a file must not decide."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_fabric.utilities.cloud_io import _load
from pytorch_lightning.utilities.model_helpers import _restricted_classmethod

from lightning_ppo.settings.trust import check_names
from lightning_ppo.support.checkpoint_files import read_checkpoint
from lightning_ppo.support.errors import ConfigError


class CheckedLoading:
    """Loads modules and data modules whose checkpoints name nothing that a file must not decide; see `check_names`."""

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        *,
        trust: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Build what a checkpoint describes, as Lightning's method does, from plain data and tensors alone.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: Where tensors go.
            hparams_file: Not taken; give settings as keyword arguments.
            trust: Packages, or whole names, that the file may name besides what any file may.
            kwargs: Settings that replace those of the file, and `strict` of Lightning's method.

        Raises:
            CheckpointError: If the file names what is not trusted.
            ConfigError: If an `hparams_file` is given.
        """
        if hparams_file is not None:
            raise ConfigError("hparams_file: the checkpoint holds its settings; give others as keyword arguments")
        if isinstance(checkpoint_path, str | os.PathLike) and "://" not in str(checkpoint_path):
            content = read_checkpoint(checkpoint_path)
        else:
            content = _load(checkpoint_path, map_location="cpu", weights_only=True)
            if hasattr(checkpoint_path, "seek"):
                checkpoint_path.seek(0)
        saved, section = content, cls.CHECKPOINT_HYPER_PARAMS_KEY  # type: ignore[attr-defined]
        content = check_names(saved, checkpoint_path, trust, kwargs)
        settings = content.get(section) or {}
        moved = {name: value for name, value in settings.items() if value is not saved[section][name]}
        kwargs = moved | cls._arguments(content) | kwargs | {"weights_only": True}
        return super().load_from_checkpoint(checkpoint_path, map_location, **kwargs)  # type: ignore[misc]

    @classmethod
    def _arguments(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the constructor that a checkpoint holds in another form."""
        return {}
