"""Schedules: their values, the steering by KL, and what `parse` refuses."""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.errors import ConfigError

LINEAR = {"kind": "linear", "start": 1.0, "end": 0.0}
COSINE = {"kind": "cosine", "start": 1.0, "end": 0.0}
PIECEWISE = {"kind": "piecewise", "points": [[0.2, 1.0], [0.6, 0.2], [0.8, 0.2]]}
JUMP = {"kind": "piecewise", "points": [[0.0, 1.0], [0.5, 1.0], [0.5, 0.25], [1.0, 0.25]]}
ADAPTIVE = {"kind": "adaptive_kl", "start": 1e-3, "target_kl": 0.01, "minimum": 1e-5, "maximum": 1e-2}


def parse(specification: Any, **kwargs: Any) -> Schedule:
    return Schedule.parse(specification, "update.clip_range", **kwargs)


@pytest.mark.parametrize(
    ("specification", "progress", "expected"),
    [
        (0.3, 0.0, 0.3),
        (0.3, 1.0, 0.3),
        ({"kind": "constant", "start": 0.3}, 0.5, 0.3),
        # 1 + p (0 - 1)
        (LINEAR, 0.0, 1.0),
        (LINEAR, 0.25, 0.75),
        (LINEAR, 1.0, 0.0),
        # reaches the end after a tenth of the training and stays there
        (LINEAR | {"until": 0.1}, 0.05, 0.5),
        (LINEAR | {"until": 0.1}, 0.1, 0.0),
        (LINEAR | {"until": 0.1}, 1.0, 0.0),
        # rising: .1 + .5 (.3 - .1)
        ({"kind": "linear", "start": 0.1, "end": 0.3}, 0.5, 0.2),
        # (1 + cos(pi p)) / 2: p = 1/4 gives (1 + .707107) / 2
        (COSINE, 0.0, 1.0),
        (COSINE, 0.25, 0.853553),
        (COSINE, 0.5, 0.5),
        (COSINE, 1.0, 0.0),
        (COSINE | {"until": 0.5}, 0.125, 0.853553),
        (COSINE | {"until": 0.5}, 0.75, 0.0),
        # .2 + (1 - .2) / 2
        (COSINE | {"end": 0.2}, 0.5, 0.6),
        # constant before the first point and after the last, straight in between: halfway (1 + .2) / 2 = .6
        (PIECEWISE, 0.0, 1.0),
        (PIECEWISE, 0.2, 1.0),
        (PIECEWISE, 0.4, 0.6),
        (PIECEWISE, 0.6, 0.2),
        (PIECEWISE, 0.7, 0.2),
        (PIECEWISE, 1.0, 0.2),
        # two points at the same progress are a jump
        (JUMP, 0.499, 1.0),
        (JUMP, 0.501, 0.25),
    ],
)
def test_value_at_progress(specification: Any, progress: float, expected: float) -> None:
    assert parse(specification)(progress) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("specification", [0.3, LINEAR, COSINE, PIECEWISE], ids=lambda s: str(s)[:20])
def test_progress_is_clamped_to_the_unit_interval(specification: Any) -> None:
    schedule = parse(specification)
    assert schedule(-1.0) == schedule(0.0) and schedule(2.0) == schedule(1.0)


@pytest.mark.parametrize("specification", [LINEAR, COSINE, PIECEWISE], ids=lambda s: s["kind"])
def test_falling_schedules_never_rise(specification: Any) -> None:
    values = [parse(specification)(progress) for progress in np.linspace(0.0, 1.0, 101)]
    assert values[0] == 1.0 and all(after <= before + 1e-12 for before, after in pairwise(values))
    # numpy progress in, plain floats out, so that logs and checkpoints stay plain
    assert json.loads(json.dumps(values)) == values


# ---------------------------------------------------------------- steering


@pytest.mark.parametrize(
    ("value", "kl", "expected"),
    [
        # above .02: 1e-3 / 1.5
        (1e-3, 0.03, 6.667e-4),
        # below .005: 1e-3 x 1.5
        (1e-3, 0.002, 1.5e-3),
        (1e-3, 0.01, 1e-3),
        (1e-3, 0.0199, 1e-3),
        (1e-3, 0.0051, 1e-3),
        # no KL at all is no reason to speed up
        (1e-3, 0.0, 1e-3),
        # 1.2e-5 / 1.5 = 8e-6 stops at the floor, 9e-3 x 1.5 at the cap
        (1.2e-5, 0.03, 1e-5),
        (1e-5, 0.03, 1e-5),
        (9e-3, 0.002, 1e-2),
        (1e-2, 0.002, 1e-2),
    ],
)
def test_steering_by_kl(value: float, kl: float, expected: float) -> None:
    schedule = parse(ADAPTIVE, allow_adaptive=True)
    assert schedule.adaptive
    assert schedule.steer(value, kl) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kl", [math.nan, -1e-9])
def test_a_meaningless_kl_does_not_steer(kl: float) -> None:
    assert parse(ADAPTIVE, allow_adaptive=True).steer(1e-3, kl) == 1e-3


@pytest.mark.parametrize(
    ("progress", "bound"),
    [(0.0, 1e-2), (0.75, 1e-2), (0.875, 1e-5 + 0.5 * 9.99e-3), (0.95, 1e-5 + 0.2 * 9.99e-3), (1.0, 1e-5)],
)
def test_the_upper_bound_falls_to_the_lower_while_cooling_down(progress: float, bound: float) -> None:
    schedule = parse(ADAPTIVE | {"cooldown": 0.25}, allow_adaptive=True)
    assert schedule.bound(progress) == pytest.approx(bound)
    assert parse(ADAPTIVE, allow_adaptive=True).bound(progress) == 1e-2
    assert parse(LINEAR).bound(progress) == math.inf
    # too large a KL came of what was used; too small a one says nothing of the bound
    assert schedule.steer(9e-3, 0.03, 3e-3) == pytest.approx(2e-3)
    assert schedule.steer(4e-3, 0.002, 3e-3) == pytest.approx(6e-3)


def test_an_adaptive_schedule_starts_at_its_start_and_ignores_progress() -> None:
    schedule = parse(ADAPTIVE, allow_adaptive=True)
    assert schedule(0.0) == schedule(0.9) == 1e-3
    assert not any(parse(other).adaptive for other in (0.3, LINEAR, COSINE, PIECEWISE))


# ---------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    "specification",
    [0.3, 0, np.float32(0.25), torch.tensor(0.5), LINEAR, LINEAR | {"until": 0.1}, COSINE, PIECEWISE, JUMP, ADAPTIVE],
    ids=lambda s: str(s)[:40],
)
def test_container_round_trip(specification: Any) -> None:
    schedule = parse(specification, allow_adaptive=True)
    # through JSON, so that nothing but plain data passes
    container = json.loads(json.dumps(schedule.to_container()))
    assert parse(container, allow_adaptive=True) == schedule
    assert parse(schedule, allow_adaptive=True) == schedule


def test_defaults_of_fields_that_are_left_out() -> None:
    # the end is 0 at progress 1
    assert parse({"kind": "linear", "start": 0.4})(0.5) == pytest.approx(0.2)


def test_parse_leaves_its_input_alone() -> None:
    specification = {"kind": "piecewise", "points": [[0.0, 1.0], [1.0, 0.0]]}
    parse(specification)
    assert specification == {"kind": "piecewise", "points": [[0.0, 1.0], [1.0, 0.0]]}


@pytest.mark.parametrize(
    ("specification", "key", "reason"),
    [
        (None, "", "expected a number"),
        (True, "", "expected a number"),
        ("fast", "", "expected a number"),
        ("1e-4", "", "expected a number"),
        ([1.0, 0.0], "", "expected a number"),
        (object(), "", "expected a number"),
        ({}, ".kind", "adaptive_kl, got None"),
        ({"start": 1.0}, ".kind", "expected one of constant, linear"),
        ({"kind": "exponential", "start": 1.0}, ".kind", "'exponential'"),
        ({"kind": ["linear"], "start": 1.0}, ".kind", "'linear'"),
        (LINEAR | {"stop": 0.0}, ".stop", "end, start, until"),
        (LINEAR | {"points": [[0, 1]]}, ".points", "not a field"),
        ({"kind": "constant", "start": 1.0, "end": 0.0}, ".end", "not a field"),
        ({"kind": "linear", "end": 0.0}, "", "'start'"),
        ({"kind": "constant"}, "", "'start'"),
        ({"kind": "cosine", "until": 0.5}, "", "'start'"),
        ({"kind": "piecewise"}, "", "'points'"),
        ({"kind": "piecewise", "points": []}, ".points", "rising order"),
        ({"kind": "piecewise", "points": [[0.5, 1.0], [0.1, 0.0]]}, ".points", "rising order"),
        ({"kind": "piecewise", "points": [[0.0, 1.0, 2.0]]}, "", "must be a number"),
        ({"kind": "piecewise", "points": [["a", "b"]]}, "", "must be a number"),
        ({"kind": "piecewise", "points": 3}, "", "must be a number"),
        (LINEAR | {"start": "fast"}, "", "must be a number"),
        (LINEAR | {"end": None}, "", "must be a number"),
        (LINEAR | {"until": 0.0}, ".until", "(0, 1]"),
        (LINEAR | {"until": -0.1}, ".until", "(0, 1]"),
        (LINEAR | {"until": 1.5}, ".until", "(0, 1]"),
        (COSINE | {"until": math.nan}, ".until", "(0, 1]"),
        (-0.1, "", "not negative"),
        (math.nan, "", "finite"),
        (math.inf, "", "finite"),
        (LINEAR | {"start": -1.0}, "", "not negative"),
        (LINEAR | {"end": -1.0}, "", "not negative"),
        (COSINE | {"end": math.nan}, "", "finite"),
        ({"kind": "piecewise", "points": [[0.0, 1.0], [0.5, -1.0], [1.0, 0.0]]}, "", "not negative"),
        ({"kind": "piecewise", "points": [[0.0, 1.0], [0.5, math.inf], [1.0, 0.0]]}, "", "finite"),
        (Schedule(start=-1.0), "", "not negative"),
        (ADAPTIVE, "", "only optimizer.learning_rate"),
        (Schedule(kind="adaptive_kl", start=1e-3), "", "only optimizer.learning_rate"),
    ],
)
def test_parse_errors_name_the_key_and_the_reason(specification: Any, key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(specification)
    assert str(error.value).startswith(f"update.clip_range{key}: ")
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"target_kl": 0.0}, {"target_kl": math.nan}, {"minimum": 0.0}, {"minimum": 0.1}, {"maximum": 1e-6}],
    ids=str,
)
def test_adaptive_bounds_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"^update\.clip_range: adaptive_kl needs a positive target_kl"):
        parse(ADAPTIVE | change, allow_adaptive=True)


@pytest.mark.parametrize(
    "points",
    [
        [[0.0, 1.0], [math.nan, 0.0]],
        [[math.nan, 1.0]],
        [[-0.5, 1.0], [1.0, 0.0]],
        # points given in env steps would never be reached
        [[0.0, 1.0], [100_000.0, 0.0]],
    ],
    ids=str,
)
def test_piecewise_progress_must_be_a_share_of_training(points: list[list[float]]) -> None:
    with pytest.raises(ConfigError, match=r"^update\.clip_range"):
        parse({"kind": "piecewise", "points": points})


def test_negative_values_are_refused() -> None:
    for specification in (-0.1, {"kind": "linear", "start": 0.1, "end": -0.1}):
        with pytest.raises(ConfigError, match="not negative"):
            parse(specification)


@pytest.mark.parametrize(
    "specification", [1.0, {"kind": "constant", "start": 1.0}, PIECEWISE], ids=["number", "constant", "piecewise"]
)
def test_the_start_is_the_value_at_progress_zero(specification: Any) -> None:
    assert parse(specification)(0.0) == 1.0


@pytest.mark.parametrize("cooldown", [-0.1, 1.5, math.nan])
def test_a_cooldown_is_a_share_of_training(cooldown: float) -> None:
    with pytest.raises(ConfigError, match=r"\.cooldown: expected a share of training in \[0, 1\]"):
        parse(ADAPTIVE | {"cooldown": cooldown}, allow_adaptive=True)
