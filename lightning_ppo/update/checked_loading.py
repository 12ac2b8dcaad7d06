"""Load modules and data modules from checkpoints that name nothing a file must not decide."""

import os
from collections.abc import Sequence
from typing import Any

from lightning_ppo.settings.hyperparameters import spaces_among
from lightning_ppo.settings.trust import check_names
from lightning_ppo.speed.internals import load_plain, restricted_classmethod
from lightning_ppo.support.checkpoint_files import read_checkpoint
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.hub import fetch


def checked_loading(base: Any) -> Any:
    """Return a `load_from_checkpoint` that first checks what a file names (see `check_names`), for a class body.

    Args:
        base: `LightningModule` or `LightningDataModule`, whose own method does the loading.
    """

    def load_from_checkpoint(
        cls: type,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        *,
        trust: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Build what a checkpoint describes, as Lightning's method does, from plain data and tensors alone.

        Args:
            cls: The class to build.
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
            content = load_plain(checkpoint_path)
            if hasattr(checkpoint_path, "seek"):
                checkpoint_path.seek(0)
        saved, section = content, base.CHECKPOINT_HYPER_PARAMS_KEY
        content = check_names(saved, checkpoint_path, trust, kwargs)
        settings = content.get(section) or {}
        moved = {name: value for name, value in settings.items() if value is not saved[section][name]}
        # constructors of subclasses may need spaces as spaces
        arguments = moved | spaces_among(settings) | kwargs | {"weights_only": True}
        load = vars(base)["load_from_checkpoint"].__get__(None, cls)
        return load(checkpoint_path, map_location, **arguments)

    return restricted_classmethod(load_from_checkpoint)


def from_hub(
    cls: Any, repository: str, *, revision: str | None = None, map_location: Any = None, trust: Sequence[str] = ()
) -> Any:
    """Return the agent of a repository of the Hugging Face Hub, or of a folder, as `load_from_checkpoint` does.

    Args:
        cls: The class to build.
        repository: `user/name`, or the path of a folder.
        revision: A branch, tag or commit of the repository.
        map_location: Where tensors go.
        trust: Packages, or whole names, that the file may name besides what any file may.

    Raises:
        CheckpointError: If there is none, or the file names what is not trusted.
        ConfigError: If the package that speaks with the Hub is missing.
    """
    return cls.load_from_checkpoint(fetch(repository, revision=revision), map_location, trust=trust)
