"""Tell a user's own files from others: a signature made with a key that only the user can read."""

import hashlib
import hmac
import os
import secrets
import tempfile
from functools import cache
from pathlib import Path

KEY_BYTES = 32


def key_path() -> Path:
    """Return where the key of this user lies: `$XDG_STATE_HOME/lightning_ppo/key`, by default in `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lightning_ppo" / "key"


def sign(message: bytes) -> str:
    """Return the signature of a message; the first call of a user makes the key.

    Returns:
        The signature, empty where no key can be kept, with a warning.
    """
    path = key_path()
    try:
        if not path.exists():
            _make(path)
        key = _read(path)
    except OSError as error:
        _warn_once(f"{path}: {error.strerror}")
        return ""
    return _digest(key, message) if key else ""


def is_own(message: bytes, signature: object) -> bool:
    """Return whether a signature was made with this user's key."""
    try:
        key = _read(key_path())
    except OSError:
        return False
    return bool(key) and isinstance(signature, str) and hmac.compare_digest(_digest(key, message), signature)


def _digest(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _read(path: Path) -> bytes:
    """Return the key, empty if what lies there is too short to be one."""
    key = path.read_bytes()
    return key if len(key) >= KEY_BYTES else b""


def _make(path: Path) -> None:
    """Write a new key, whole or not at all; of two processes that do so at the same time the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)


@cache
def _warn_once(reason: str) -> None:
    from pytorch_lightning.utilities.rank_zero import rank_zero_warn

    rank_zero_warn(
        f"checkpoints are not signed ({reason}): what they name besides the built-in classes needs --trust to be loaded"
    )
