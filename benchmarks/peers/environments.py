"""Virtual environments of the peers under `benchmarks/.venvs`, each from its `requirements-NAME.txt`."""

import shutil
import subprocess
import venv
from pathlib import Path

PEERS = Path(__file__).resolve().parent
VENVS = PEERS.parent / ".venvs"


def peer_python(name: str) -> Path:
    """Return the Python of a peer's virtual environment, made anew unless it fits its requirements file.

    Raises:
        SystemExit: If the requirements cannot be installed.
    """
    requirements = PEERS / f"requirements-{name}.txt"
    folder = VENVS / name
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return python
    print(f"making {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
    if subprocess.run(install, check=False).returncode:
        raise SystemExit(f"{requirements}: could not be installed")
    installed.write_text(requirements.read_text())
    return python
