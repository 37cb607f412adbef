"""Statistics of drift: which frames of a stream to compare, and the slope of the error with its confidence interval.

Errors of neighbouring frames are not independent measurements, since the frames share the ring and the scene. So frames
are compared in separate blocks, and only the means of blocks are fitted: by ordinary least squares, with standard
errors that allow one point to be noisier than another.
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
    """A slope per frame, with the ends of its 95 % confidence interval."""

    slope: float
    lower: float
    upper: float

    def text(self, num_frames: int) -> str:
        """The change over num_frames: '+1.2e-06 [-3.0e-07, +2.7e-06]'."""
        change, lower, upper = (num_frames * value for value in (self.slope, self.lower, self.upper))
        return f"{change:+.1e} [{lower:+.1e}, {upper:+.1e}]"

    def share_text(self, num_frames: int, unit: float) -> str:
        """The change over num_frames as a fraction of `unit`: '+12% [-3%, +27%]'."""
        change, lower, upper = (num_frames * value / unit for value in (self.slope, self.lower, self.upper))
        return f"{change:+.0%} [{lower:+.0%}, {upper:+.0%}]"


def plan_blocks(num_frames: int, window: int, *, num_blocks: int, seed: int = 0) -> tuple[range, ...]:
    """Plan the frames to compare: the first two windows, then num_blocks blocks of one window each, or fewer if the
    stream is short.

    The stream is divided into equal parts with one block each. A block begins at least a window after the previous one
    ends, in a long stream at least half a part. Its exact position is drawn at random, so that blocks do not keep step
    with anything periodic (slots, waves of the clock). The last block ends the stream. Raises SpecError if the stream
    is too short for a slope.
    """
    begin = 2 * window
    count = min(num_blocks, (num_frames - begin) // (2 * window))
    if count < MIN_BLOCKS:
        raise SpecError(
            f"{num_frames} frames are too few to measure drift with a window of {window}",
            expected=f"at least {begin + MIN_BLOCKS * 2 * window} frames ({1 + MIN_BLOCKS} times two windows)",
        )
    rng, part = np.random.default_rng(seed), (num_frames - begin) / count
    spare = min(int(part) // 2, int(part) - 2 * window)
    early = [*(int(rng.integers(spare + 1)) for _ in range(count - 1)), 0]
    stops = [begin + round((index + 1) * part) - early[index] for index in range(count)]
    return range(begin), *(range(stop - window, stop) for stop in stops)


def fit_trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit a line by least squares to at least three points, which must be independent but may differ in noise."""
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
    """The t above which Student's distribution has the probability (1 - CONFIDENCE) / 2, and the same below -t."""
    low, high = 0.0, 1e3  # 12.7 for one degree of freedom, less for more
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _probability_within(t: float, degrees: int) -> float:
    """A(t | degrees): the probability that a value of Student's distribution lies between -t and t."""
    angle = atan(t / sqrt(degrees))
    first = degrees % 2
    term = cos(angle) if first else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(first + 2, degrees - 1, 2):
        term *= (power - 1) / power * cos(angle) ** 2
        total += term
    total *= sin(angle)
    return 2 / pi * (angle + total) if first else total
