"""Does an error grow over a stream, and how sure is that: where to look, and a slope with its interval.

Errors of neighbouring frames are no independent measurements: they share the ring and the scene. So frames are looked
at in blocks that lie apart, and only the means of blocks are fitted: by ordinary least squares, with standard errors
that let one point be noisier than another.
    means of blocks            Conway 1963, Management Science 10(1), 47-61
    standard errors            HC3: MacKinnon and White 1985, J. Econometrics 29, 305-325
    quantile of Student's t    exact, from its distribution function: Abramowitz and Stegun 26.7.3 and 26.7.4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, pi, sin, sqrt

import numpy as np

from engines.errors import SpecError

CONFIDENCE = 0.95
MIN_BLOCKS = 3


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


def plan_blocks(num_frames: int, window: int, *, num_blocks: int, seed: int = 0) -> tuple[range, ...]:
    """Frames to compare one by one: the first two windows whole, then num_blocks blocks of a window each, fewer where
    the stream is short.

    Each lies in an equal part of the stream of its own, at least a window after the block before it, in a long
    stream by half a part; where exactly is drawn, so that nothing periodic (slots, waves of the clock) is met in step.
    The last ends the stream. Raises SpecError for a stream too short for a slope.
    """
    begin = 2 * window
    count = min(num_blocks, (num_frames - begin) // (2 * window))
    if count < MIN_BLOCKS:
        raise SpecError(
            f"{num_frames} frames are too few to see a drift at window {window}",
            expected=f"at least {begin + MIN_BLOCKS * 2 * window}, {1 + MIN_BLOCKS} times two windows",
        )
    rng, part = np.random.default_rng(seed), (num_frames - begin) / count
    spare = min(int(part) // 2, int(part) - 2 * window)
    early = [*(int(rng.integers(spare + 1)) for _ in range(count - 1)), 0]
    stops = [begin + round((index + 1) * part) - early[index] for index in range(count)]
    return range(begin), *(range(stop - window, stop) for stop in stops)


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
