"""How far a graph of any origin may be from its reference: measured on the spot, by one rule.

    floor   the reference in float32 against itself in float64, on the same inputs; the worst so far in that stream
    limit   unit * (MARGIN * floor / 2^-24 + ULPS), at most CEILING

unit is the unit roundoff of the graph's narrowest weights, inputs or outputs. For float32 that is MARGIN floors and
ULPS roundings; for float16 both are 2^13 times as large. Where the reference does not run in float64, NO_FLOOR_ULPS
roundings take the floor's place. Integers and bool must be equal, and NaN or infinity on either side fails.
A graph that is meant to be further off, as one in int8 is, has the limits that --tolerance gives in place of the rule.
Why: no number was chosen for a model. A reference that amplifies rounding gets a wider limit because it does. But none
is above CEILING, since what may be off by more proves nothing; the report says so where that is why it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

import numpy as np

from engines.memory import Array

from ..parity.drift.report import Drift, Sample
from ..parity.drift.statistics import plan_blocks
from ..parity.limits import share_of
from ..parity.metrics import Limits, Metrics, metrics_of

MARGIN = 8.0
"""Another order of the same sums is off by one to three floors, and one draw of a floor is a noisy measure. With it the
worst of 40 faithful streams used 28 % of its limit (recurrent, attention; float32, float16; ONNX Runtime 1.32)."""
ULPS = 16.0
"""Roundings that an output may gather where the floor happens to be zero."""
NO_FLOOR_ULPS = 128.0
CEILING = 0.1
METRICS = ("rel_l2", "worst_token")
"""Those that have limits."""
Floors = dict[str, Limits]
"""The noise floor of every output of a stream: the worst so far, since rounding gathers and a step may be lucky."""
FLOAT32_UNIT = 2.0**-24
RULE = {
    "margin": MARGIN, "ulps": ULPS, "no_floor_ulps": NO_FLOOR_ULPS, "ceiling": CEILING, "float32_unit": FLOAT32_UNIT,
}  # fmt: skip
UNIT_ROUNDOFF = {"float32": FLOAT32_UNIT, "float16": 2.0**-11, "bfloat16": 2.0**-8}

MIN_DRIFT_STEPS = 16
"""Of fewer, no slope is fitted."""
FAITHFUL = 4.0
"""A faithful graph may use a fourth of its limit, as in the committed limits of bundles: what grows by more drifts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared(Metrics):
    """One output of one run against the reference's, or of one row of a batch against another.

    num_different  values of an integer or bool output that differ; 0 for floats
    floor          what the limits come from; None without float64
    """

    tensor: str
    run: str
    step: int
    num_different: int
    floor: Limits | None
    limits: Limits

    @property
    def passed(self) -> bool:
        return self.share() <= 1

    def share(self) -> float:
        """How much of its limit the worst metric uses; above 1 fails."""
        return inf if self.num_different else share_of(self, self.limits)

    def text(self) -> str:
        """The numbers and their limits, in words."""
        if self.flaw:
            return self.flaw.rstrip(",")
        if self.num_different:
            return f"{self.num_different} values differ, by up to {self.max_abs:g} (they must be equal)"
        words = [
            f"{metric.replace('_', ' ')} {getattr(self, metric):.1e} (limit {limit:.1e})"
            for metric, limit in self.limits.items()
        ]
        return ", ".join(words if "max_abs" in self.limits else [*words, f"max abs {self.max_abs:.1e}"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def compare(
    got: Array, want: Array, *, tensor: str, run: str, step: int, floor: Limits | None, allowed: Allowance
) -> Compared:
    """Two arrays, and what they may be off by."""
    found, is_exact = metrics_of(got, want), want.dtype.kind != "f"
    return Compared(
        **asdict(found),
        tensor=tensor,
        run=run,
        step=step,
        num_different=int((got != want).sum()) if is_exact and not found.shapes else 0,
        floor=None if is_exact else floor,
        limits={} if is_exact else allowed.limits(floor),
    )


@dataclass(frozen=True, slots=True)
class Allowance:
    """Where limits come from: the rule, in units of a graph's roundoff, or --tolerance, where it was given."""

    unit: float
    given: Mapping[str, float] = field(default_factory=dict)

    def limits(self, floor: Limits | None) -> Limits:
        return dict(self.given) or limits_of(floor, self.unit)


def limits_of(floor: Limits | None, unit: float) -> Limits:
    """The rule."""
    if floor is None:
        return dict.fromkeys(METRICS, min(unit * NO_FLOOR_ULPS, CEILING))
    return {
        metric: min(unit * (MARGIN * value / FLOAT32_UNIT + ULPS), CEILING) if np.isfinite(value) else CEILING
        for metric, value in floor.items()
    }


def add_floor(floors: Floors, want: Mapping[str, Array], exact: Mapping[str, Array] | None) -> None:
    """One more step of the reference, in float32 and in float64, if it runs there."""
    for name, value in (exact or {}).items():
        if value.dtype.kind == "f" and value.shape == want[name].shape:
            found, before = metrics_of(want[name], value), floors.get(name, {})
            floors[name] = {metric: max(getattr(found, metric), before.get(metric, 0.0)) for metric in METRICS}


def drift_of(tensor: str, samples: Sequence[Sample], floor: Limits | None, allowed: Allowance) -> Drift:
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
        noise=allowed.limits(floor)["rel_l2"] / FAITHFUL,
    )
