"""One schedule type for every scalar coefficient: a number, or a mapping such as `{kind: linear, start: 1, end: 0}`.

A schedule is a pure function of training progress in [0, 1]. The kind `adaptive_kl` (learning rate only) is steered
by the measured KL divergence instead, so its current value is state, kept by the optimizer and its checkpoint.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_ppo.support.errors import ConfigError

_FIELDS = {
    "constant": {"start"},
    "linear": {"start", "end", "until"},
    "cosine": {"start", "end", "until"},
    "piecewise": {"points"},
    "adaptive_kl": {"start", "target_kl", "minimum", "maximum", "cooldown"},
}


@dataclass(frozen=True)
class Schedule:
    """A coefficient as a function of training progress.

    Attributes:
        kind: `constant`, `linear`, `cosine`, `piecewise` or `adaptive_kl`.
        start: Value at progress 0.
        end: Value from progress `until` on (linear, cosine).
        until: Progress in (0, 1] at which `end` is reached.
        points: `(progress, value)` pairs in rising order; linear in between (piecewise).
        target_kl: KL divergence per iteration that `adaptive_kl` holds, in nats.
        minimum: Lower bound of `adaptive_kl`.
        maximum: Upper bound of `adaptive_kl`.
        cooldown: Share of training, at its end, in which the upper bound of `adaptive_kl` falls linearly to the lower.
    """

    kind: str = "constant"
    start: float = 0.0
    end: float = 0.0
    until: float = 1.0
    points: tuple[tuple[float, float], ...] = ()
    target_kl: float = 0.01
    minimum: float = 1e-5
    maximum: float = 1e-2
    cooldown: float = 0.0

    @property
    def adaptive(self) -> bool:
        """Whether the value is steered by the measured KL instead of by progress."""
        return self.kind == "adaptive_kl"

    @property
    def values(self) -> list[float]:
        """The values between which it moves."""
        values = [value for _, value in self.points] or [self.start]
        return [*values, self.end] if "end" in _FIELDS[self.kind] else values

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`, the share of the training budget already used, clamped to [0, 1]."""
        progress = min(max(float(progress), 0.0), 1.0)
        if self.kind == "piecewise":
            return self._interpolate(progress)
        fraction = min(progress / self.until, 1.0)
        if self.kind == "linear":
            return float(self.start + fraction * (self.end - self.start))
        if self.kind == "cosine":
            return float(self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * fraction)))
        return float(self.start)

    def _interpolate(self, progress: float) -> float:
        before = self.points[0]
        for after in self.points:
            if progress <= after[0]:
                width = after[0] - before[0]
                weight = (progress - before[0]) / width if width > 0 else 1.0
                return float(before[1] + weight * (after[1] - before[1]))
            before = after
        return float(before[1])

    def to_container(self) -> dict[str, Any]:
        """Return the mapping that `parse` reads back."""
        values = {name: getattr(self, name) for name in sorted(_FIELDS[self.kind])}
        if "points" in values:
            values["points"] = [list(point) for point in self.points]
        return {"kind": self.kind, **values}

    def steer(self, value: float, kl: float, used: float = math.inf) -> float:
        """Return the next value of an `adaptive_kl` schedule.

        Above twice the target the value is divided by 1.5, below half of it multiplied by 1.5: the rule of Rudin et al.
        2022, "Learning to Walk in Minutes Using Massively Parallel Deep Reinforcement Learning".

        Args:
            value: The current value.
            kl: Exact KL divergence of the last update in nats.
            used: The value that the update used, if a cooldown bounds it.
        """
        if kl > 2.0 * self.target_kl:
            return max(min(value, used) / 1.5, self.minimum)
        if 0.0 < kl < 0.5 * self.target_kl:
            return min(value * 1.5, self.maximum)
        return value

    def bound(self, progress: float) -> float:
        """Return what the value of an `adaptive_kl` schedule is bounded by at `progress`; of others, infinity.

        It is the maximum, and falls from there while the schedule cools down, as in Haegele et al. 2024, "Scaling Laws
        and Compute-Optimal Training Beyond Fixed Training Durations". The value that is steered stays as it is, so that
        nothing is lost if the budget grows.
        """
        if not self.adaptive:
            return math.inf
        if not self.cooldown:
            return self.maximum
        left = min((1.0 - progress) / self.cooldown, 1.0)
        return self.minimum + left * (self.maximum - self.minimum)

    @staticmethod
    def parse(
        specification: Any, key: str, *, allow_adaptive: bool = False, positive: bool = False, most: float = math.inf
    ) -> "Schedule":
        """Build a schedule from what a config holds.

        Args:
            specification: A number, a mapping with `kind` and its fields, or a `Schedule`.
            key: Name of the setting, for error messages.
            allow_adaptive: Whether `adaptive_kl` is meaningful for this coefficient.
            positive: Whether 0 is out of range.
            most: The largest value.

        Raises:
            ConfigError: If the specification is none of these, or a value is out of range.
        """
        if isinstance(specification, Schedule):
            schedule = specification
        elif isinstance(specification, bool) or specification is None or isinstance(specification, str):
            raise ConfigError(f"{key}: expected a number or a schedule mapping, got {specification!r}")
        elif isinstance(specification, Mapping):
            schedule = _from_mapping(specification, key)
        else:
            try:
                schedule = Schedule(start=float(specification))
            except (TypeError, ValueError):
                raise ConfigError(f"{key}: expected a number or a schedule mapping, got {specification!r}") from None
        if schedule.adaptive and not allow_adaptive:
            raise ConfigError(f"{key}: the kind adaptive_kl steers only optimizer.learning_rate")
        if any(not math.isfinite(value) or value < 0.0 for value in schedule.values):
            raise ConfigError(f"{key}: values must be finite and not negative, got {specification!r}")
        if positive and min(schedule.values) == 0.0:
            raise ConfigError(f"{key}: must be positive, got {specification!r}")
        if max(schedule.values) > most:
            raise ConfigError(f"{key}: must be at most {most:g}, got {specification!r}")
        return schedule


def _from_mapping(mapping: Mapping[Any, Any], key: str) -> Schedule:
    fields = dict(mapping)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ConfigError(f"{key}.kind: expected one of {', '.join(_FIELDS)}, got {kind!r}")
    unknown = set(fields) - _FIELDS[kind]
    if unknown:
        raise ConfigError(
            f"{key}.{sorted(map(str, unknown))[0]}: not a field of the kind {kind}, "
            f"which has {', '.join(sorted(_FIELDS[kind]))}"
        )
    try:
        if kind == "piecewise":
            points = tuple((float(progress), float(value)) for progress, value in fields["points"])
            shares = [progress for progress, _ in points]
            if not points or shares != sorted(shares) or not all(0.0 <= share <= 1.0 for share in shares):
                raise ConfigError(
                    f"{key}.points: expected [progress, value] pairs in rising order of progress within [0, 1]"
                )
            return Schedule(kind=kind, start=points[0][1], end=points[-1][1], points=points)
        numbers: dict[str, Any] = {name: float(value) for name, value in fields.items()}
        schedule = Schedule(kind=kind, **numbers)
    except KeyError as error:
        raise ConfigError(f"{key}: the kind {kind} needs the field {error}") from None
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: every field of the kind {kind} must be a number, got {dict(mapping)!r}") from None
    if not 0.0 < schedule.until <= 1.0:
        raise ConfigError(f"{key}.until: expected a share of training in (0, 1], got {schedule.until:g}")
    if "start" not in fields:
        raise ConfigError(f"{key}: the kind {kind} needs the field 'start'")
    bounds = (schedule.minimum, schedule.start, schedule.maximum)
    if schedule.adaptive and not (schedule.target_kl > 0.0 and 0.0 < bounds[0] <= bounds[1] <= bounds[2]):
        raise ConfigError(f"{key}: adaptive_kl needs a positive target_kl and 0 < minimum <= start <= maximum")
    if not 0.0 <= schedule.cooldown <= 1.0:
        raise ConfigError(f"{key}.cooldown: expected a share of training in [0, 1], got {schedule.cooldown:g}")
    return schedule
