"""Where a chart draws what."""

import re

import numpy as np
import pytest

from lightning_ppo.report.charts import EXTENT, Series, chart


def test_a_line_rises_with_its_values_within_its_band():
    steps = np.array([0.0, 50.0, 100.0])
    mean = np.array([0.0, 2.0, 8.0])
    drawn = chart("Return", "", [Series("a", "s0", steps, mean, mean, np.array([0.0, 4.0, 8.0]))])

    def points(kind: str) -> list[list[float]]:
        (path,) = re.findall(rf'<path class="{kind} s0" d="M([^"Z]+)', drawn)
        return [[float(number) for number in point.split()] for point in path.split("L")]

    # down the page from the top, on an axis from 0 to 8
    assert points("line") == pytest.approx(np.array([[0, EXTENT], [EXTENT / 2, EXTENT * 0.75], [EXTENT, 0]]))
    upper = [[0, EXTENT], [EXTENT / 2, EXTENT / 2], [EXTENT, 0]]
    assert points("band") == pytest.approx(np.array([*upper, *points("line")[::-1]]))
