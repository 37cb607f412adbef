"""Limits on the difference between a graph of any origin and its reference: measured during the check, by one rule.

    floor   the noise floor: the reference in float32 against itself in float64, on the same inputs; the worst so far
    limit   unit * (MARGIN * floor / 2^-24 + ULPS), at most CEILING

unit is the unit roundoff of the graph's narrowest weights, inputs or outputs. For float32 the limit is MARGIN floors
and ULPS roundings; for float16 both are 2^13 times as large. If the reference does not run in float64, NO_FLOOR_ULPS
roundings replace the rule. Integers and bool must be equal, and NaN or infinity on either side fails.
A graph that is expected to differ more, such as an int8 graph, gets its limits from --tolerance instead of the rule.
Why: no number is tuned to a model. A reference that amplifies rounding gets a wider limit for that reason alone. No
limit exceeds CEILING, since a larger one would prove nothing; the report states when that is why an output fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engines.errors import SpecError
from engines.memory import Array
from engines.spec import Precision

from ..parity.drift.report import Drift, Sample
from ..parity.drift.statistics import plan_blocks
from ..parity.limits import NoiseTable
from ..parity.metrics import Difference, Limits, compare_arrays
from ..parity.places import Place, Rung

MARGIN = 8.0
"""Summing in another order costs one to three floors, and a floor from one draw is a noisy measure. With this margin,
the worst of 40 faithful streams used 28 % of its limit (recurrent, attention; float32, float16; ONNX Runtime 1.32)."""
ULPS = 16.0
"""Roundings an output may accumulate where the floor happens to be zero."""
NO_FLOOR_ULPS = 128.0
CEILING = 0.1
METRICS = ("rel_l2", "worst_token")
"""Metrics that have limits."""
FLOAT32_UNIT = 2.0**-24
RULE = {
    "margin": MARGIN, "ulps": ULPS, "no_floor_ulps": NO_FLOOR_ULPS, "ceiling": CEILING, "float32_unit": FLOAT32_UNIT,
}  # fmt: skip
UNIT_ROUNDOFF = {"float32": FLOAT32_UNIT, "float16": 2.0**-11, "bfloat16": 2.0**-8}
PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
FLOOR = Rung("torch", "fp32")
"""Rung of the noise floor, whatever the graph's dtype."""

MIN_DRIFT_STEPS = 16
"""Minimum number of steps for fitting a slope."""
FAITHFUL = 4.0
"""A faithful graph may use a quarter of its limit, as in the committed limits of bundles. Growing by more is drift."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares the outputs of one graph, and sets their limits.

    graph  the graph's name
    dtype  the narrowest float in it
    given  metric -> limit, from --tolerance, instead of the rule
    """

    graph: str
    dtype: str = "float32"
    given: Mapping[str, float] = field(default_factory=dict)

    def compare(self, got: Array, want: Array, *, tensor: str, where: Place, noise: NoiseTable) -> Difference:
        """Compare two arrays; adds the noise floor and the limits that follow from it, except for integers and bool."""
        rung = Rung("onnx", PRECISIONS[self.dtype])
        found = compare_arrays(got, want, rung=rung, graph=self.graph, tensor=tensor, where=where)
        if want.dtype.kind != "f":
            return found
        floor = self.floor(tensor, noise)
        return replace(found, noise=floor or {}, limits=self.limits(floor))

    def floor(self, tensor: str, noise: NoiseTable) -> Limits | None:
        """Noise floor of an output, the worst so far; None if the reference does not run in float64."""
        try:
            floor = noise.at(Difference(rung=FLOOR, graph=self.graph, tensor=tensor, where=Place("step")))
        except SpecError:
            return None
        return {metric: floor[metric] for metric in METRICS}

    def limits(self, floor: Limits | None) -> Limits:
        """Limits by the rule, or those given instead."""
        if self.given:
            return dict(self.given)
        unit = UNIT_ROUNDOFF[self.dtype]
        if floor is None:
            return dict.fromkeys(METRICS, min(unit * NO_FLOOR_ULPS, CEILING))
        return {
            metric: min(unit * (MARGIN * value / FLOAT32_UNIT + ULPS), CEILING) if np.isfinite(value) else CEILING
            for metric, value in floor.items()
        }

    def floors(self, want: Mapping[str, Array], exact: Mapping[str, Array] | None) -> Iterator[Difference]:
        """Noise of one more step of the reference: float32 against float64, if it runs in float64."""
        for name, value in (exact or {}).items():
            if value.dtype.kind == "f" and value.shape == want[name].shape:
                yield compare_arrays(want[name], value, rung=FLOOR, graph=self.graph, tensor=name, where=Place("step"))

    def drift(self, tensor: str, samples: Sequence[Sample], noise: NoiseTable) -> Drift:
        """Drift: the change of one output's error over a stream of at least MIN_DRIFT_STEPS steps.

        Every step was compared. The steps are grouped into separate blocks; the first two, in which a state still
        fills, are left out.
        """
        blocks = plan_blocks(len(samples), len(samples) // MIN_DRIFT_STEPS, num_blocks=MIN_DRIFT_STEPS)
        return Drift(
            tensor=tensor,
            num_frames=len(samples),
            samples=tuple(samples),
            means=tuple(Sample.mean_of(samples[block.start : block.stop]) for block in blocks[1:]),
            noise=self.limits(self.floor(tensor, noise))["rel_l2"] / FAITHFUL,
        )
