"""Line charts as inline SVG that fills its box; labels are HTML, so that they keep their size whatever the width."""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

EXTENT = 1000.0
"""Width and height of the drawing, in its own units."""


class Series(NamedTuple):
    """One line with its band.

    Attributes:
        label: Name in the legend.
        colour: Class of the style sheet that gives the colour.
        steps: (K,), environment steps.
        mean: (K,).
        low: (K,), lower edge of the band.
        high: (K,), upper edge.
    """

    label: str
    colour: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that cover [low, high], `count` steps or one more or less."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(value: float) -> str:
    """Return a number for an axis or a table: 1.5M, 20k, 500, 0.25, 3e-5."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[unit]:.4g}{unit}"
    if size >= 1e-3 or size == 0.0:
        return f"{value:.4g}"
    return _exponential(value)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return labels of one notation for all ticks of an axis."""
    small = max(abs(tick) for tick in ticks) < 1e-2
    return [_exponential(tick) if small and tick else short(tick) for tick in ticks]


def _exponential(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def chart(title: str, note: str, series: Sequence[Series]) -> str:
    """Return a figure with one line and band per series.

    Args:
        title: Title of the chart.
        note: Its meaning, one sentence.
        series: At least one; each has at least one point.
    """
    right = max(float(s.steps[-1]) for s in series)
    x_ticks = nice_ticks(0.0, right)
    y_ticks = nice_ticks(min(float(s.low.min()) for s in series), max(float(s.high.max()) for s in series))
    bottom, top = y_ticks[0], y_ticks[-1]

    def x(steps: np.ndarray) -> np.ndarray:
        return steps / (right or 1.0) * EXTENT

    def y(values: np.ndarray) -> np.ndarray:
        return (top - values) / (top - bottom) * EXTENT

    shapes = [f'<path class="grid" d="M0 {v:.1f}H{EXTENT:.0f}"/>' for v in y(np.array(y_ticks))]
    for s in series:
        if not np.array_equal(s.low, s.high):
            outline = _path(np.append(x(s.steps), x(s.steps)[::-1]), np.append(y(s.high), y(s.low)[::-1]))
            shapes.append(f'<path class="band {s.colour}" d="{outline}Z"/>')
    for s in series:
        if len(s.steps) == 1:  # a line of one point shows nothing
            shapes.append(f'<path class="line dot {s.colour}" d="M{x(s.steps)[0]:.1f} {y(s.mean)[0]:.1f}h0"/>')
        else:
            shapes.append(f'<path class="line {s.colour}" d="{_path(x(s.steps), y(s.mean))}"/>')
    y_labels = zip(y_ticks, tick_labels(y_ticks), strict=True)
    labels = [_label("y", "bottom", (v - bottom) / (top - bottom), text) for v, text in y_labels]
    labels += [_label("x", "left", v / (right or 1.0), short(v)) for v in x_ticks if v <= right * 1.001]
    data = {
        "right": right,
        "bottom": bottom,
        "top": top,
        "series": [
            {"label": s.label, "colour": s.colour, "steps": _rounded(s.steps), "mean": _rounded(s.mean)}
            | ({} if np.array_equal(s.low, s.high) else {"low": _rounded(s.low), "high": _rounded(s.high)})
            for s in series
        ],
    }
    return (
        f'<figure class="chart" data-chart="{escape(json.dumps(data))}">'
        f"<figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>"
        f'<div class="plot"><svg viewBox="0 0 {EXTENT:.0f} {EXTENT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)} against environment steps">{"".join(shapes)}</svg>'
        f'{"".join(labels)}<div class="cursor" hidden></div><div class="tip" hidden></div></div></figure>'
    )


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _label(axis: str, side: str, share: float, text: str) -> str:
    return f'<span class="{axis}" style="{side}:{100 * share:.2f}%">{text}</span>'


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
