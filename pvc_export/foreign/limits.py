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
from math import inf
from typing import Any

import numpy as np

from engines.memory import Array

from ..parity.drift.statistics import Drift, Sample, plan_blocks
from ..parity.metrics import Difference, compare_arrays

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
"""Of fewer, no slope is fitted."""
FAITHFUL = 4.0
"""A faithful graph may use a fourth of its limit, as in the committed limits of bundles: what grows by more drifts."""

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
    difference: Difference
    num_different: int
    floor: Worst | None
    limits: Worst

    @property
    def tensor(self) -> str:
        return self.difference.tensor

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
    """The noise floor of every output of a stream: the worst so far, since rounding gathers and a step may be lucky."""

    worst: dict[str, Worst] = field(default_factory=dict)

    def add(self, tensor: str, want: Array, exact: Array) -> None:
        """One step: the reference's output in float32 and in float64."""
        found = difference_of(want, exact, tensor=tensor, where="")
        before = self.worst.get(tensor, {})
        self.worst[tensor] = {metric: max(getattr(found, metric), before.get(metric, 0.0)) for metric in METRICS}

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
        difference=difference_of(got, want, tensor=tensor, where=f"step {step}"),
        num_different=int((got != want).sum()) if exact else 0,
        floor=None if exact else floor,
        limits={} if exact else limits_of(floor, unit),
    )


def difference_of(got: Array, want: Array, *, tensor: str, where: str) -> Difference:
    """compare_arrays, for arrays without an axis or without a value too."""
    a, b = (np.atleast_1d(array) if array.size else np.zeros(1) for array in (got, want))
    with np.errstate(invalid="ignore", over="ignore"):
        return compare_arrays(a, b, stage="", graph="", tensor=tensor, where=where)


def drift_of(tensor: str, samples: Sequence[Sample], floor: Worst | None, unit: float) -> Drift:
    """How the error of one output changes over the steps of a stream, of which there are at least MIN_DRIFT_STEPS.

    Every step was compared. They are gathered in blocks that lie apart, and the first two are left out, in which a
    state still fills. `floor` is the worst of the stream.
    """
    blocks = plan_blocks(len(samples), len(samples) // MIN_DRIFT_STEPS, num_blocks=MIN_DRIFT_STEPS)
    return Drift(
        tensor=tensor,
        num_frames=len(samples),
        samples=tuple(samples),
        means=tuple(Sample.mean_of(samples[block.start : block.stop]) for block in blocks[1:]),
        noise=limits_of(floor, unit)["rel_l2"] / FAITHFUL,
    )
