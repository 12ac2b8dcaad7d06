"""How the command line was called, for help texts and hints."""

import sys
from pathlib import Path


def program() -> str:
    """Return `lightning-ppo` where the installed command was called, else `python -m lightning_ppo`."""
    name = Path(sys.argv[0]).name
    return "lightning-ppo" if name.startswith("lightning-ppo") else "python -m lightning_ppo"
