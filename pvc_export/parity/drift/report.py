"""Drift results of a long stream: a curve for each tensor with its verdict, and the report on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np

from engines.spec import Precision

from ...terminal.numbers import share
from ..limits import Row
from .statistics import CONFIDENCE, Trend, fit_trend

Series = Literal["error", "floor", "beyond", "gap"]
COLUMNS = ("frame", "error", "floor", "gap")
UNDECIDED = "undecided"
SINGLE_FRAME = 4
"""A single frame may use up to this many times its limit, the mean of a block only one. A limit comes from the worst of
some twenty frames, and longer streams contain rarer ones: a faithful float32 export exceeded a limit in five of 2,000
frames of `shapes`, by one token each, and reached at most 1.8 times the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One frame, or the mean over a block of frames: relative L2 of one tensor; drift/measure.py defines each field."""

    frame: float
    error: float
    floor: float
    gap: float

    @property
    def beyond(self) -> float:
        return self.error - self.floor

    @staticmethod
    def mean_of(samples: Sequence[Sample]) -> Sample:
        return Sample(**{name: float(np.mean([getattr(sample, name) for sample in samples])) for name in COLUMNS})


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Error of one tensor over a stream of num_frames, and its growth, for a bundle or any graph.

    tensor   'graph/tensor', or the name of a graph's output
    samples  every compared frame
    means    means over blocks of frames, to which the trends are fitted
    noise    the worst relative L2 of a faithful export to torch fp32, of which the limit is a multiple. An error that
             grows by more than this within the stream drifts; smaller growth cannot be distinguished from it
    """

    tensor: str
    num_frames: int
    samples: tuple[Sample, ...]
    means: tuple[Sample, ...]
    noise: float

    def trend(self, series: Series) -> Trend:
        """The trend per frame."""
        return fit_trend([mean.frame for mean in self.means], [getattr(mean, series) for mean in self.means])

    def trends(self) -> dict[str, Trend]:
        """Name in words -> trend, for the errors that must not grow."""
        return {"above the noise floor": self.trend("beyond"), "from torch fp32": self.trend("gap")}

    def growth(self) -> str | None:
        """'drifts: ...' if even the lower end of a slope's interval, times the stream's length, is above `noise`."""
        for name, trend in self.trends().items():
            if trend.lower * self.num_frames > self.noise:
                change = trend.text(self.num_frames)
                return f"drifts: {change} {name} over {self.num_frames} frames, more than {self.noise:.1e}"
        return None

    def doubt(self, limit: float) -> str | None:
        """'undecided: ...' if the upper end is above the limit, so that a drift of that size cannot be excluded."""
        for name, trend in self.trends().items():
            if trend.upper * self.num_frames > limit:
                change = trend.text(self.num_frames)
                return f"{UNDECIDED}: {change} {name} may reach {limit:.1e}; compare a longer stream"
        return None

    @property
    def verdict(self) -> str:
        """'ok', or what is wrong, in words."""
        return self.growth() or "ok"

    def to_json(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "verdict": self.verdict,
            "slope_per_frame": {series: asdict(self.trend(series)) for series in get_args(Series)},
            "allowed_change": self.noise,
            "columns": COLUMNS,
            "samples": [[getattr(sample, name) for name in COLUMNS] for sample in self.samples],
            "block_means": [[getattr(mean, name) for name in COLUMNS] for mean in self.means],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftCurve(Drift):
    """Drift of a bundle's tensor, with its committed limits. `means` exclude the first window.

    block      the worst block: its mean difference from torch fp32 in each metric that has a limit, and the limits
    single     the worst single frame, in the same form
    reference  the worst block of torch fp32 against torch fp64; not the bundle's fault, so not part of the verdict
    """

    block: Row
    single: Row
    reference: Row

    @property
    def worst(self) -> Sample:
        return max(self.samples, key=lambda sample: sample.error)

    def times_floor(self) -> float:
        """Growth of the error within the stream, in multiples of the mean noise floor."""
        return self.trend("error").slope * self.num_frames / float(np.mean([mean.floor for mean in self.means]))

    @property
    def reference_drifts(self) -> bool:
        """Whether float32 itself loses enough over this stream to count as drift in a bundle."""
        return self.trend("floor").lower * self.num_frames > self.noise

    @property
    def is_undecided(self) -> bool:
        """Whether nothing is wrong, but the stream is too short to exclude a drift as large as the limit."""
        return self.verdict.startswith(UNDECIDED)

    @property
    def verdict(self) -> str:
        """'ok', or what is wrong, in words."""
        ends = [end for trend in self.trends().values() for end in (trend.lower, trend.upper)]
        if self.single.worst.flaw or not all(map(isfinite, ends)):
            return f"cannot be compared: {self.single.text()}"
        if (growth := self.growth()) is not None:
            return growth
        if not self.block.passed:
            return f"over its limit, but not drifting: {self.block.text()}"
        if self.single.share() > SINGLE_FRAME:
            return f"a single frame over {SINGLE_FRAME} times its limit: {self.single.text()}"
        return self.doubt(self.block.worst.limits["rel_l2"]) or "ok"

    def line(self) -> str:
        first, last, error = self.means[0], self.means[-1], self.trend("error")
        beyond, gap = (self.trend(series).share_text(self.num_frames, self.noise) for series in ("beyond", "gap"))
        return (
            f"  {'ok  ' if self.verdict == 'ok' else 'FAIL'} {self.tensor:<24}{first.floor:.1e} -> {last.floor:.1e}   "
            f"{first.error:.1e} -> {last.error:.1e}   {error.text(self.num_frames)}{self.times_floor():>+8.2f}   "
            f"{beyond:<24}{gap:<24}{self.noise:.1e}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **Drift.to_json(self),
            "change_over_floor": self.times_floor(),
            "worst": asdict(self.worst),
            "worst_block_share_of_limit": self.block.share(),
            "worst_frame_share_of_limit": self.single.share(),
            "reference_share_of_limit": self.reference.share(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Drift of all vision outputs and cache rows over one stream. `seconds`: wall time of stream and reference."""

    precision: Precision
    computed_in: str
    window: int
    num_frames: int
    seconds: float
    curves: tuple[DriftCurve, ...]

    @property
    def passed(self) -> bool:
        return all(curve.verdict == "ok" for curve in self.curves)

    def faults(self) -> list[str]:
        return [f"{curve.tensor} {curve.verdict}" for curve in self.curves if curve.verdict != "ok"]

    def summary(self) -> str:
        block, single = (max(getattr(c, row).share() for c in self.curves) for row in ("block", "single"))
        return (
            f"{'pass' if self.passed else 'FAIL'}: {len(self.curves)} tensors over {self.num_frames} frames in "
            f"{self.seconds:.0f} s, {len(self.curves[0].samples)} frames compared; worst block at "
            f"{share(block)} of its limit, worst single frame at {share(single)}"
        )

    def table(self) -> list[str]:
        """Lines for people: one per tensor, then every fault, and the drift of float32 itself."""
        what = f"drift over {self.num_frames} frames, window {self.window}, {self.precision} (computed in "
        return [
            f"{what}{self.computed_in}): relative L2, means of the first and the last of "
            f"{len(self.curves[0].means)} blocks, and its change over the stream with a {CONFIDENCE:.0%} interval",
            f"{'':<31}{'floor: fp32 to fp64':<23}{'error: to fp64':<23}{'change of the error':<31}{'/ floor':>8}   "
            f"{'change above the floor':<24}{'change from fp32':<24}100% is",
            *(curve.line() for curve in self.curves),
            *(f"  FAIL {fault}" for fault in self.faults()),
            *self._of_the_reference(),
        ]

    def _of_the_reference(self) -> list[str]:
        drifting = [curve for curve in self.curves if curve.reference_drifts]
        if not drifting:
            return []
        worst = max(drifting, key=lambda curve: curve.trend("floor").slope)
        share = max(curve.reference.share() for curve in drifting)
        return [
            f"  The float32 reference also drifts from float64, {worst.tensor} by "
            f"{worst.trend('floor').text(self.num_frames)}, to {share:.0%} of the limit of 'torch fp32'. "
            "This is the model's own rounding, not the bundle's."
        ]

    def to_json(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ("precision", "computed_in", "window", "num_frames", "seconds")}
        return {
            "passed": self.passed,
            **facts,
            "confidence": CONFIDENCE,
            "method": "least squares on means of blocks, HC3 standard errors, Student's t",
            "curves": [curve.to_json() for curve in self.curves],
        }
