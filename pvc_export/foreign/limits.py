"""How far a graph of any origin may be from its reference: measured on the spot, by one rule.

    floor   the reference in float32 against itself in float64, on the same inputs; the worst so far in that stream
    limit   unit * (MARGIN * floor / 2^-24 + ULPS), at most CEILING

unit is the unit roundoff of the graph's narrowest weights, inputs or outputs. For float32 that is MARGIN floors and
ULPS roundings; for float16 both are 2^13 times as large. Where the reference does not run in float64, NO_FLOOR_ULPS
roundings take the floor's place. Integers and bool must be equal, and NaN or infinity on either side fails.
Unusual: no number was chosen for a model. A reference that amplifies rounding gets a wider limit because it does. But
none is above CEILING, since what may be off by more proves nothing; the report says so where that is why it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Any

import numpy as np

from engines.memory import Array

from ..parity.metrics import Metrics, metrics_of

MARGIN = 8.0
"""Another order of the same sums is off by one to three floors, and one draw of a floor is a noisy measure. With it the
worst of 40 faithful streams used 28 % of its limit (recurrent, attention; float32, float16; ONNX Runtime 1.32)."""
ULPS = 16.0
"""Roundings that an output may gather where the floor happens to be zero."""
NO_FLOOR_ULPS = 128.0
CEILING = 0.1
METRICS = ("rel_l2", "worst_token")
"""Of parity.Difference. A token is a vector along the last axis."""
FLOAT32_UNIT = 2.0**-24
UNIT_ROUNDOFF = {"float32": FLOAT32_UNIT, "float16": 2.0**-11, "bfloat16": 2.0**-8}

MIN_DRIFT_STEPS = 16
HORIZON = 10
"""Streams run on: the error must not leave its limit within this many times the steps that were seen."""
Z99 = 2.58

Worst = dict[str, float]
"""Metric -> the worst that was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One output of one run against the reference's, or of one row against another.

    num_different  values of an integer or bool output that differ; 0 for floats
    floor          what the limits come from; None without float64
    """

    run: str
    step: int
    tensor: str
    difference: Metrics
    num_different: int
    floor: Worst | None
    limits: Worst

    @property
    def passed(self) -> bool:
        return self.share() <= 1

    def to_json(self) -> dict[str, Any]:
        """The numbers that have limits, with them, and the floor behind them."""
        found = self.difference
        return {
            "run": self.run,
            "step": self.step,
            "tensor": self.tensor,
            "passed": self.passed,
            "max_abs": found.max_abs,
            "rel_l2": found.rel_l2,
            "worst_token": found.worst_token,
            "num_nonfinite": found.num_nonfinite,
            "num_different": self.num_different,
            "limits": self.limits,
            "floor": self.floor,
        }

    def share(self) -> float:
        """How much of its limit the worst metric uses; above 1 fails."""
        if self.difference.num_nonfinite or self.num_different:
            return inf
        return max((getattr(self.difference, metric) / limit for metric, limit in self.limits.items()), default=0.0)

    def text(self) -> str:
        """The numbers and their limits, in words."""
        found = self.difference
        if found.num_nonfinite:
            return f"{found.num_nonfinite} values are NaN or infinite, of the graph and the reference together"
        if self.num_different:
            return f"{self.num_different} values differ, by up to {found.max_abs:g} (they must be equal)"
        words = [
            f"{metric.replace('_', ' ')} {getattr(found, metric):.1e} (limit {limit:.1e})"
            for metric, limit in self.limits.items()
        ]
        return f"{', '.join(words)}, max abs {found.max_abs:.1e}"


@dataclass(kw_only=True, slots=True)
class Floors:
    """The noise floor of every output of one stream: the worst so far, since rounding gathers and a step may be lucky.

    series  the relative L2 of every step, for its slope
    """

    worst: dict[str, Worst] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)

    def add(self, tensor: str, want: Array, exact: Array) -> None:
        """One step: the reference's output in float32 and in float64."""
        found = metrics_of(want, exact)
        before = self.worst.get(tensor, {})
        self.worst[tensor] = {metric: max(getattr(found, metric), before.get(metric, 0.0)) for metric in METRICS}
        self.series.setdefault(tensor, []).append(found.rel_l2)

    def of(self, tensor: str) -> Worst | None:
        return self.worst.get(tensor)


def limits_of(floor: Worst | None, unit: float) -> Worst:
    """The rule."""
    if floor is None:
        return dict.fromkeys(METRICS, min(unit * NO_FLOOR_ULPS, CEILING))
    return {
        metric: min(unit * (MARGIN * value / FLOAT32_UNIT + ULPS), CEILING) if np.isfinite(value) else CEILING
        for metric, value in floor.items()
    }


def compare(got: Array, want: Array, *, tensor: str, run: str, step: int, floor: Worst | None, unit: float) -> Compared:
    """Two arrays of one shape, by the rule."""
    exact = want.dtype.kind != "f"
    return Compared(
        run=run,
        step=step,
        tensor=tensor,
        difference=metrics_of(got, want),
        num_different=int((got != want).sum()) if exact else 0,
        floor=None if exact else floor,
        limits={} if exact else limits_of(floor, unit),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """A line through a series: its value in the middle, and what it gains a step, with a 99 % confidence interval."""

    middle: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """The relative L2 of one output over the steps of a stream, beside the noise floor's.

    at_horizon  the least that the error's line comes to at the horizon, and what the limit comes to there
    """

    tensor: str
    error: Slope
    floor: Slope | None
    at_horizon: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error.low <= 0 or self.at_horizon <= self.limit

    def text(self) -> str:
        words = f"the error changes by {_interval(self.error)} a step"
        words += f", the float64 floor by {_interval(self.floor)}" if self.floor else ""
        return (
            f"{words}; at {HORIZON} times these steps that is {self.at_horizon:.1e} at least (limit {self.limit:.1e})"
        )


def drift_of(tensor: str, errors: Sequence[float], floors: Sequence[float] | None, unit: float) -> Drift:
    """Whether an error grows faster than the rounding that it may be.

    The first quarter is left out, in which a state still fills. A faithful graph's error is a few times the floor, and
    so is its slope; one that loses a little each step grows while the floor does not, and is seen before its limit.
    """
    skipped = len(errors) // 4
    error = slope_of(errors[skipped:])
    ahead = HORIZON * len(errors) - (skipped + (len(errors) - skipped - 1) / 2)
    floor = None if floors is None else slope_of(floors[skipped:])
    worst = None if floor is None else {"rel_l2": max(floor.middle, 0.0) + max(floor.high, 0.0) * ahead}
    return Drift(
        tensor=tensor,
        error=error,
        floor=floor,
        at_horizon=error.middle + error.low * ahead,
        limit=limits_of(worst, unit)["rel_l2"],
    )


def slope_of(series: Sequence[float]) -> Slope:
    """Least squares. Errors of a stream lean on each other, so the interval is widened by their correlation (AR 1)."""
    values = np.asarray(series, dtype=np.float64)
    times = np.arange(len(values)) - (len(values) - 1) / 2
    spread = float(times @ times)
    value = float(times @ values) / spread
    rest = values - values.mean() - value * times
    power = float(rest @ rest)
    correlation = min(max(float(rest[1:] @ rest[:-1]) / power, 0.0), 0.99) if power > 0 else 0.0
    error = sqrt(power / (len(values) - 2) / spread * (1 + correlation) / (1 - correlation))
    return Slope(middle=float(values.mean()), value=value, low=value - Z99 * error, high=value + Z99 * error)


def _interval(slope: Slope) -> str:
    return f"{slope.value:.1e} (99 %: {slope.low:.1e} to {slope.high:.1e})"
