"""What commands print: how they were called, and aligned columns."""

import sys
from collections.abc import Sequence
from pathlib import Path


def program() -> str:
    """Return `lightning-ppo` where the installed command was called, else `python -m lightning_ppo`."""
    name = Path(sys.argv[0]).name
    return "lightning-ppo" if name.startswith("lightning-ppo") else "python -m lightning_ppo"


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Return rows of cells as indented lines in which the cells of each column begin below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)
