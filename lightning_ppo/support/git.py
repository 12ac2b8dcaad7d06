"""The commit that the working directory is at."""

import subprocess


def commit() -> dict[str, str | bool] | None:
    """Return the commit of the working directory and whether tracked files differ from it; None where there is none."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit, or another user's
        return None
    return {"commit": said.removesuffix("-dirty"), "dirty": said.endswith("-dirty")}
