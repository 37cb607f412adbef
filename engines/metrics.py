"""Difference between two arrays, in six numbers. numpy alone: a device measures in the same way as a check."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10, nan

import numpy as np

from .memory import Array

TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Difference of one array from another; a token is a vector along the last axis.

    max_abs        the largest |a - b| of any value
    rel_l2         |a - b| / |b| over the whole tensor
    worst_token    the largest |a_i - b_i| of any token, over the root mean square of |b_i|
    worst_value    the largest |a - b| of any value, over the spread of b's tokens: their root mean variance
    cosine_gap     1 - the smallest cosine of a token with its counterpart
    norm_gap       | |a| / |b| - 1 |
    num_nonfinite  values of a that are NaN or infinite;  num_unknown  the same of b, which then proves nothing
    num_different  unequal values, for integers and bool
    shapes         of a and b if they differ; then the numbers above are NaN
    """

    max_abs: float = nan
    rel_l2: float = nan
    worst_token: float = nan
    worst_value: float = nan
    cosine_gap: float = nan
    norm_gap: float = nan
    num_nonfinite: int = 0
    num_unknown: int = 0
    num_different: int = 0
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 20 log10 of |b| / |a - b|; infinite for equal tensors."""
        return inf if self.rel_l2 == 0 else -20 * log10(self.rel_l2)

    @property
    def flaw(self) -> str | None:
        """Reason why the two cannot be compared by numbers; None if they can."""
        if self.shapes is not None:
            return f"its shape is {self.shapes[0]}, expected {self.shapes[1]},"
        if self.num_unknown:
            return f"{self.num_unknown} values of the reference itself are NaN or infinite"
        if self.num_different:
            return f"{self.num_different} values differ, by up to {self.max_abs:g}, expected equal values,"
        return f"{self.num_nonfinite} values are NaN or infinite" if self.num_nonfinite else None


def metrics_of(got: Array, want: Array) -> Metrics:
    """Compare two arrays of any shapes. Arrays without an axis or without a value count as one value."""
    if got.shape != want.shape:
        return Metrics(shapes=(got.shape, want.shape))
    a, b = (np.atleast_1d(x.astype(np.float64)) if x.size else np.zeros(1) for x in (got, want))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.linalg.norm(a - b, axis=-1)
        norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        total = float(np.linalg.norm(norms[1]))
        # Two tokens of length zero are equal, so their cosine counts as 1.
        cosines = np.where(error == 0, 1.0, (a * b).sum(-1) / np.maximum(norms[0] * norms[1], TINY))
        largest = float(np.abs(a - b).max())
        spread = float(np.sqrt(max(np.mean(norms[1] ** 2) / b.shape[-1] - np.mean(b.mean(axis=-1) ** 2), 0.0)))
        return Metrics(
            max_abs=largest,
            rel_l2=float(np.linalg.norm(error)) / max(total, TINY),
            worst_token=float(error.max()) / max(float(np.sqrt(np.mean(norms[1] ** 2))), TINY),
            worst_value=largest / max(spread, TINY),
            cosine_gap=max(1.0 - float(cosines.min()), 0.0),
            norm_gap=abs(float(np.linalg.norm(norms[0])) - total) / max(total, TINY),
            num_nonfinite=int((~np.isfinite(a)).sum()),
            num_unknown=int((~np.isfinite(b)).sum()),
            num_different=int((got != want).sum()) if want.dtype.kind in "iub" else 0,
        )
