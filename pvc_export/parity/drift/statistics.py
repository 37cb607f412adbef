"""Does an error grow over a stream, and how sure is that: where to look, a slope with its interval, and the report.

Errors of neighbouring frames are no independent measurements: they share the ring and the scene. So frames are looked
at in blocks that lie apart, and only the means of blocks are fitted: by ordinary least squares, with standard errors
that let one point be noisier than another.
    means of blocks            Conway 1963, Management Science 10(1), 47-61
    standard errors            HC3: MacKinnon and White 1985, J. Econometrics 29, 305-325
    quantile of Student's t    exact, from its distribution function: Abramowitz and Stegun 26.7.3 and 26.7.4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import atan, cos, isfinite, pi, sin, sqrt
from typing import Any, Literal, get_args

import numpy as np

from engines.errors import SpecError
from engines.spec import Precision

from ..metrics import Row

Series = Literal["error", "floor", "beyond", "gap"]
CONFIDENCE = 0.95
MIN_BLOCKS = 3
UNDECIDED = "undecided"
SINGLE_FRAME = 4
"""A single frame may be off by so many limits, the mean of a block by one. A limit comes from the worst of some twenty
frames, and longer streams meet rarer ones: of 2,000 frames of `shapes` a faithful float32 export was above one limit in
five, by one token each, and at most at 1.8 of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Frames start, start + 1, ... stop - 1, which are compared one by one."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A slope per frame, and the ends of its 95 % confidence interval."""

    slope: float
    lower: float
    upper: float

    def text(self, num_frames: int) -> str:
        """The change over so many frames: '+1.2e-06 [-3.0e-07, +2.7e-06]'."""
        change, lower, upper = (num_frames * value for value in (self.slope, self.lower, self.upper))
        return f"{change:+.1e} [{lower:+.1e}, {upper:+.1e}]"

    def share_text(self, num_frames: int, unit: float) -> str:
        """The same as shares of `unit`: '+12% [-3%, +27%]'."""
        change, lower, upper = (num_frames * value / unit for value in (self.slope, self.lower, self.upper))
        return f"{change:+.0%} [{lower:+.0%}, {upper:+.0%}]"


def plan_blocks(num_frames: int, window: int, *, num_blocks: int, seed: int = 0) -> tuple[Block, ...]:
    """The first two windows whole, then num_blocks blocks of a window each, fewer where the stream is short.

    Each lies in an equal part of the stream of its own, at least a window behind the block before it, and in a long
    stream by half a part; where exactly is drawn, so that nothing periodic (slots, waves of the clock) is met in step.
    The last ends the stream. Raises SpecError for a stream too short for a slope.
    """
    begin = 2 * window
    count = min(num_blocks, (num_frames - begin) // (2 * window))
    if count < MIN_BLOCKS:
        raise SpecError(
            f"{num_frames} frames are too few to see a drift at window {window}: expected at least "
            f"{begin + MIN_BLOCKS * 2 * window}, {1 + MIN_BLOCKS} times two windows"
        )
    rng, part = np.random.default_rng(seed), (num_frames - begin) / count
    spare = min(int(part) // 2, int(part) - 2 * window)
    early = [*(int(rng.integers(spare + 1)) for _ in range(count - 1)), 0]
    stops = [begin + round((index + 1) * part) - early[index] for index in range(count)]
    return Block(start=0, stop=begin), *(Block(start=stop - window, stop=stop) for stop in stops)


def fit_trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """Least squares through at least three points, which must be independent but not equally noisy."""
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    assert len(x) >= 3, "two points have a slope but no interval"
    centered = x - x.mean()
    spread = float(centered @ centered)
    slope = float(centered @ y) / spread
    leverage = 1 / len(x) + centered**2 / spread
    residuals = (y - y.mean() - slope * centered) / (1 - leverage)
    reach = student_quantile(len(x) - 2) * float(np.sqrt((centered**2) @ (residuals**2))) / spread
    return Trend(slope=slope, lower=slope - reach, upper=slope + reach)


@cache
def student_quantile(degrees: int) -> float:
    """The t beyond which Student's distribution has (1 - CONFIDENCE) / 2 on either side."""
    low, high = 0.0, 1e3  # 12.7 for one degree, and less for more
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _probability_within(t: float, degrees: int) -> float:
    """A(t | degrees): how likely a value of Student's distribution lies between -t and t."""
    angle = atan(t / sqrt(degrees))
    first = degrees % 2
    term = cos(angle) if first else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(first + 2, degrees - 1, 2):
        term *= (power - 1) / power * cos(angle) ** 2
        total += term
    total *= sin(angle)
    return 2 / pi * (angle + total) if first else total


# -- the report --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One frame, or the mean over a block of them: relative L2 of one tensor, as drift/measure.py defines each."""

    frame: float
    error: float
    floor: float
    gap: float

    @property
    def beyond(self) -> float:
        return self.error - self.floor

    @staticmethod
    def mean_of(samples: Sequence[Sample]) -> Sample:
        names = ("frame", "error", "floor", "gap")
        return Sample(**{name: float(np.mean([getattr(sample, name) for sample in samples])) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far one tensor is off over a stream of num_frames, and whether that grows.

    tensor   'graph/tensor', or the name of a graph's output
    samples  every frame that was compared
    means    of blocks of them: what the trends are fitted to
    noise    the worst relative L2 from torch fp32 of a faithful export, from which the limit was made. An error that
             grows by as much within the stream drifts; less is lost in it
    """

    tensor: str
    num_frames: int
    samples: tuple[Sample, ...]
    means: tuple[Sample, ...]
    noise: float

    def trend(self, series: Series) -> Trend:
        """Per frame."""
        return fit_trend([mean.frame for mean in self.means], [getattr(mean, series) for mean in self.means])

    def trends(self) -> dict[str, Trend]:
        """What must not grow, in words, and how it does."""
        return {"beyond the noise floor": self.trend("beyond"), "from torch fp32": self.trend("gap")}

    def grows(self) -> str | None:
        """'drifts: ...' where even the lower end of a slope's interval, times the stream's length, is above `noise`."""
        for name, trend in self.trends().items():
            if trend.lower * self.num_frames > self.noise:
                change = trend.text(self.num_frames)
                return f"drifts: {change} {name} over a stream of {self.num_frames}, above {self.noise:.1e}"
        return None

    @property
    def verdict(self) -> str:
        """'ok', or what is wrong, in words."""
        return self.grows() or "ok"

    def is_open(self, limit: float) -> str | None:
        """'undecided: ...' where the upper end is above the limit: a drift as large as that is not excluded."""
        for name, trend in self.trends().items():
            if trend.upper * self.num_frames > limit:
                change = trend.text(self.num_frames)
                return f"{UNDECIDED}: {change} {name} may reach {limit:.1e}; compare a longer stream"
        return None

    def to_json(self) -> dict[str, Any]:
        columns = ("frame", "error", "floor", "gap")
        return {
            "tensor": self.tensor,
            "verdict": self.verdict,
            "slope_per_frame": {series: asdict(self.trend(series)) for series in get_args(Series)},
            "allowed_change": self.noise,
            "columns": columns,
            "samples": [[getattr(sample, name) for name in columns] for sample in self.samples],
            "block_means": [[getattr(mean, name) for name in columns] for mean in self.means],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftCurve(Drift):
    """The same of a tensor of a bundle, beside its committed limits. `means` are of the blocks after the first window.

    block      the worst block, its mean difference from torch fp32 in four metrics, and the limits committed for it
    single     the worst single frame, likewise
    reference  the worst block of torch fp32 against torch fp64: no fault of the bundle, so not part of the verdict
    """

    block: Row
    single: Row
    reference: Row

    @property
    def worst(self) -> Sample:
        return max(self.samples, key=lambda sample: sample.error)

    def times_floor(self) -> float:
        """How far the error grows within the stream, in multiples of the mean noise floor."""
        return self.trend("error").slope * self.num_frames / float(np.mean([mean.floor for mean in self.means]))

    @property
    def reference_drifts(self) -> bool:
        """Whether float32 itself loses over this stream what would be drift in a bundle."""
        return self.trend("floor").lower * self.num_frames > self.noise

    @property
    def is_undecided(self) -> bool:
        """Nothing is wrong, but the stream was too short to exclude a drift as large as the limit."""
        return self.verdict.startswith(UNDECIDED)

    @property
    def verdict(self) -> str:
        """The same, of what else a bundle must be too."""
        ends = [end for trend in self.trends().values() for end in (trend.lower, trend.upper)]
        if self.single.worst.num_nonfinite or not all(map(isfinite, ends)):
            return f"not finite: {self.single.text()}"
        if (growth := self.grows()) is not None:
            return growth
        if not self.block.passed:
            return f"above its limit, but not drifting: {self.block.text()}"
        if self.single.share() > SINGLE_FRAME:
            return f"a single frame above {SINGLE_FRAME} times its limit: {self.single.text()}"
        return self.is_open(self.block.limits["rel_l2"]) or "ok"

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
    """All vision outputs and cache rows over one stream. `seconds` is wall time, streaming and reference together."""

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
            f"{self.seconds:.0f} s, {len(self.curves[0].samples)} frames compared; blocks of them at most at "
            f"{block:.0%} of their limits, single frames at {single:.0%}"
        )

    def table(self) -> list[str]:
        """Lines for people: one a tensor, then every fault, and what float32 itself loses."""
        what = f"drift over {self.num_frames} frames, window {self.window}, {self.precision} (computed in "
        return [
            f"{what}{self.computed_in}): relative L2, as mean of the first and of the last of "
            f"{len(self.curves[0].means)} blocks, and its change over the stream, with a {CONFIDENCE:.0%} interval",
            f"{'':<31}{'floor: fp32 to fp64':<23}{'error: to fp64':<23}{'change of the error':<31}{'/ floor':>8}   "
            f"{'change beyond the floor':<24}{'change from fp32':<24}100% is",
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
            f"  The float32 reference drifts from float64 as well, {worst.tensor} by "
            f"{worst.trend('floor').text(self.num_frames)}, to {share:.0%} of what 'torch fp32' may be off by: the "
            "model's own rounding, not the bundle's."
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
