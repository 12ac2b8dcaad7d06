"""The run directory: choose its name, and refuse one that holds another run."""

import os
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from lightning_ppo.settings.loading import to_yaml
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import ConfigError

RUN_DIR_VARIABLE = "LIGHTNING_PPO_RUN_DIR"


def choose_run_dir(config: Config) -> Path:
    """Return the run directory, the same in every process of a launch."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    if RUN_DIR_VARIABLE not in os.environ:
        name = re.sub(r"[^\w./-]+", "_", config.env.id)
        os.environ[RUN_DIR_VARIABLE] = str(Path("runs") / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        path = Path(os.environ[RUN_DIR_VARIABLE])
        for count in range(2, 100):
            if not path.exists():
                break
            path = path.with_name(f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{count}")
        os.environ[RUN_DIR_VARIABLE] = str(path)
    return Path(os.environ[RUN_DIR_VARIABLE])


def claim(run_dir: Path, config: Config) -> None:
    """Create the run directory and write the settings there; refuse one that holds something else."""
    from lightning_ppo.support.checkpoint_files import set_damaged_aside
    from lightning_ppo.support.files import replacing
    from lightning_ppo.support.git import commit

    # a process that was killed while it wrote the settings has left a part of them
    used = run_dir.exists() and (not run_dir.is_dir() or any(p.name != ".config.yaml.tmp" for p in run_dir.iterdir()))
    begun = config.resume == "auto" and (run_dir / "config.yaml").is_file()  # and stopped before its first checkpoint
    if used and not begun and config.resume in (None, "auto"):
        raise ConfigError(
            f"run_dir: {run_dir} is not empty and nothing in it is overwritten; name another, or add resume=last"
        )
    try:
        with replacing(run_dir / "config.yaml") as file:
            if state := commit():
                file.write(f"# git commit {state['commit']}{', with changes' if state['dirty'] else ''}\n")
            file.write(to_yaml(replace(config, resume=None)))
        set_damaged_aside(run_dir / "checkpoints" / "last.ckpt")
    except OSError as error:
        raise ConfigError(f"run_dir: cannot write to {run_dir}: {error.strerror}") from None
