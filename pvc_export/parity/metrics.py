"""How far two arrays are apart: six numbers of any two, and with the name of what was compared, a Difference.

Integers and bool are equal or they are not: no number says how far apart they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf, log10, nan
from typing import Any

import numpy as np

from engines.memory import Array

from .places import Place, Rung

TINY = float(np.finfo(np.float64).tiny)
Limits = dict[str, float]
"""Metric -> a number: how far off something may be, or what rounding does to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """How far one array is from another, a token being a vector along the last axis.

    max_abs        the largest |a - b| of any value
    rel_l2         |a - b| / |b| over the whole tensor
    worst_token    the largest |a_i - b_i| of any token, over the root mean square of |b_i|
    worst_value    the largest |a - b| of any value, over the spread of b's tokens: their root mean variance
    cosine_gap     1 - the smallest cosine of a token with its counterpart
    norm_gap       | |a| / |b| - 1 |
    num_nonfinite  values of a that are NaN or infinite;  num_unknown  those of b, which then proves nothing
    num_different  values of a that are not b's, of integers and bool
    shapes         of a and of b where they differ; then the numbers above are NaN
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
        """Why no number can say how far apart the two are, in words; None if the numbers do."""
        if self.shapes is not None:
            return f"its shape is {self.shapes[0]}, expected {self.shapes[1]},"
        if self.num_unknown:
            return f"{self.num_unknown} values of the reference itself are NaN or infinite"
        if self.num_different:
            return f"{self.num_different} values differ, by up to {self.max_abs:g}, expected equal ones,"
        return f"{self.num_nonfinite} values are NaN or infinite" if self.num_nonfinite else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Metrics):
    """One tensor of one run of a graph, against the neighbour on the ladder.

    noise, limits  what rounding alone does there, and how far off it may be: empty until it was judged (limits.py)
    """

    rung: Rung
    graph: str
    tensor: str
    where: Place
    noise: Limits = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)

    @property
    def name(self) -> str:
        """'temporal/features'."""
        return f"{self.graph}/{self.tensor}"

    def share(self) -> float:
        """How much of its limit the worst metric uses: above 1 fails, and infinite where no number says how far off it
        is. It was judged."""
        if self.flaw:
            return inf
        return max((float(getattr(self, metric)) / limit for metric, limit in self.limits.items()), default=0.0)

    @property
    def passed(self) -> bool:
        return self.share() <= 1  # NaN is not

    def numbers(self) -> str:
        """What has a limit, and the largest error, in words; else what is wrong."""
        if self.flaw:
            return self.flaw.rstrip(",")
        said = [
            f"{name.replace('_', ' ')} {getattr(self, name):.1e} (limit {limit:.1e})"
            for name, limit in self.limits.items()
        ]
        return ", ".join(said if "max_abs" in self.limits else [*said, f"max abs {self.max_abs:.1e}"])

    def to_json(self) -> dict[str, Any]:
        """`stage` is the rung; `shapes` and `num_different` are there only where something differs. Limits are those
        of the rows."""
        numbers = {key: value for key, value in asdict(self).items() if key not in ("rung", "noise", "limits")}
        numbers["where"] = str(self.where)
        for key in ("shapes", "num_different"):
            if not numbers[key]:
                del numbers[key]
        return {"stage": str(self.rung), **numbers}


def metrics_of(got: Array, want: Array) -> Metrics:
    """Compare two arrays, of any shapes. Those without an axis or without a value count as one value."""
    if got.shape != want.shape:
        return Metrics(shapes=(got.shape, want.shape))
    a, b = (np.atleast_1d(x.astype(np.float64)) if x.size else np.zeros(1) for x in (got, want))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.linalg.norm(a - b, axis=-1)
        norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        total = float(np.linalg.norm(norms[1]))
        # A token of no length on both sides has no direction to lose.
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


def compare_arrays(got: Array, want: Array, *, rung: Rung, graph: str, tensor: str, where: Place) -> Difference:
    """The same, with the name of what was compared."""
    return Difference(rung=rung, graph=graph, tensor=tensor, where=where, **asdict(metrics_of(got, want)))
