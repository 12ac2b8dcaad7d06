"""Distinguish a user's own files from others by a signature with a key that only the user can read."""

import hashlib
import hmac
import os
import secrets
import tempfile
from functools import cache
from pathlib import Path

KEY_BYTES = 32


def key_path() -> Path:
    """Return the path of this user's key: `$XDG_STATE_HOME/lightning_ppo/key`, by default in `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lightning_ppo" / "key"


def sign(message: bytes) -> str:
    """Return the signature of a message; the first call of a user makes the key.

    Returns:
        The signature, empty where no key can be kept, with a warning.
    """
    try:
        if not key_path().exists():
            _make(key_path())
        return _digest(_read(key_path()), message)
    except (OSError, RuntimeError, ValueError) as error:
        _warn_once(str(error))
        return ""


def is_own(message: bytes, signature: object) -> bool:
    """Return whether a signature was made with this user's key."""
    try:
        own = _digest(_read(key_path()), message)
    except (OSError, RuntimeError, ValueError):
        return False
    return isinstance(signature, str) and hmac.compare_digest(own.encode(), signature.encode())


def _digest(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} holds no key; remove it, and a new one is made")
    return key


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
        f"checkpoints are not signed ({reason}): classes of your own that they name need --trust to be loaded"
    )
