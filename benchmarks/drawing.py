"""Pictures of the documentation: SVG files that are readable in light and in dark, drawn from rows alone.

Colours are names here. In a file they are CSS variables that follow the reader's colour scheme, and the picture has a
ground of its own, so that it can be read on any page.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COLORS = {
    "ground": ("#ffffff", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#d0d7de", "#3d444d"),
    "other": ("#6e7781", "#9198a1"),
    "blue": ("#0550ae", "#79c0ff"),
    "orange": ("#bc4c00", "#ffa657"),
    "green": ("#116329", "#7ee787"),
    "purple": ("#8250df", "#d2a8ff"),
    "red": ("#a40e26", "#ff7b72"),
}
"""Colour in light and in dark."""
LIGHT = {name: light for name, (light, _) in COLORS.items()}
SICK = ("orange", "purple", "red", "green", "other")
"""Colours of curves that are not as they should be."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning_ppo",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "grid.color": LIGHT["faint"],
    "axes.facecolor": LIGHT["ground"],
    "figure.facecolor": LIGHT["ground"],
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), LIGHT["ink"]),
    "axes.edgecolor": LIGHT["other"],
    "legend.frameon": False,
}


def panels(rows: int, columns: int, width: float = 4.0, height: float = 2.8) -> tuple[Figure, Any]:
    """Return a figure and its axes (rows, columns)."""
    plt.rcParams.update(STYLE)
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def save(figure: Figure, name: str, folder: Path = PICTURES) -> None:
    """Write a figure as `name`.svg with colours that follow the reader's scheme."""
    path = folder / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    text = path.read_text()
    for color, light in LIGHT.items():
        text = re.sub(rf"(fill|stroke): {light}\b", rf"\1: var(--{color}, {light})", text)
    schemes = [";".join(f"--{color}:{both[dark]}" for color, both in COLORS.items()) for dark in (0, 1)]
    style = (
        f"svg{{{schemes[0]}}}@media(prefers-color-scheme:dark){{svg{{{schemes[1]}}}}}"
        "text{font-family:system-ui,sans-serif!important}"
    )
    text = re.sub(r"(<svg [^>]*>)", rf"\1\n <style>{style}</style>", text, count=1)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def lines(
    axis: Any, curves: dict[str, Sequence[tuple[float, float]]], colors: Sequence[str] = ("blue", "orange")
) -> None:
    """Draw curves by name, each in the next colour, with a legend if there are several."""
    for (name, points), color in zip(curves.items(), colors, strict=False):
        axis.plot(*zip(*points, strict=True), color=LIGHT[color], label=name)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_major_locator(plt.MaxNLocator(4))
    if len(curves) > 3:
        axis.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif len(curves) > 1:
        axis.legend(fontsize=10)
