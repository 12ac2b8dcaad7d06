"""Files that are replaced whole or not at all, whatever stops the process that writes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w", keep: int = 1) -> Iterator[IO]:
    """Open a file that takes the place of `path` when the block ends, or leaves it as it was when the block raises.

    A process that is killed leaves the old file, or the new one. With `keep` > 1 there is an instant between two
    renames at which only the former versions exist.

    Args:
        path: The file to replace.
        mode: `w` or `wb`.
        keep: Versions kept: `path` itself and, before it, `former(path, 1)` and so on.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode, newline=None if "b" in mode else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        for age in range(keep - 1, 0, -1):
            if former(path, age - 1).exists():
                os.replace(former(path, age - 1), former(path, age))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def former(path: Path, age: int) -> Path:
    """Return the path of the version that was written `age` writes before the current one: `last-1.ckpt`."""
    return path.with_name(f"{path.stem}-{age}{path.suffix}") if age else path
