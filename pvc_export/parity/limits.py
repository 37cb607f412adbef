"""The committed limits (thresholds.json), and differences held against them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import SpecError
from engines.memory import Array
from engines.spec import Precision

from .metrics import Difference, Metrics
from .places import Rung

THRESHOLDS = Path(__file__).with_name("thresholds.json")
GATED = ("rel_l2", "worst_token", "cosine_gap", "norm_gap")
"""The metrics that have limits; all four must hold."""
Limits = dict[str, float]
"""Metric -> limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The worst of one tensor, or of all that share limits, on one rung over the stream, held against these.

    worst  the difference that uses most of its limits;  peaks  the worst of each metric, of whichever difference
    """

    num_tensors: int = 1
    num_compared: int
    worst: Difference
    peaks: dict[str, float]
    limits: Limits

    @property
    def rung(self) -> Rung:
        return self.worst.rung

    @property
    def graph(self) -> str:
        return self.worst.graph

    @property
    def tensor(self) -> str:
        return self.worst.tensor

    @property
    def name(self) -> str:
        """'bundle fp16: temporal/features'."""
        return f"{self.rung}: {self.worst.name}"

    @property
    def kind(self) -> str:
        """What it shares limits with: 'temporal/new' for the cache rows of every layer."""
        return limit_key(self.graph, self.tensor)

    @property
    def worst_metric(self) -> str:
        return max(GATED, key=lambda metric: nan_last(self.peaks[metric]) / self.limits[metric])

    @property
    def passed(self) -> bool:
        return self.share() <= 1

    def share(self) -> float:
        """How much of its limit the worst metric uses; above 1 fails."""
        return share_of(self.worst, self.limits)

    def text(self) -> str:
        """The worst metric and its limit, in words."""
        worst, limits = self.worst, self.limits
        if worst.flaw:
            return f"{worst.flaw} at {worst.where}"
        metric = max(GATED, key=lambda name: float(getattr(worst, name)) / limits[name])
        return f"{metric.replace('_', ' ')} {getattr(worst, metric):.1e} (limit {limits[metric]:.1e}) at {worst.where}"

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": str(self.rung),
            "graph": self.graph,
            "tensor": self.tensor,
            "num_compared": self.num_compared,
            "worst": self.worst.to_json(),
            "limits": self.limits,
            "passed": self.passed,
        }


def share_of(found: Metrics, limits: Limits) -> float:
    """The largest share of a limit that any metric uses; infinite where no number says how far apart the two are."""
    if found.flaw:
        return inf
    return max((float(getattr(found, metric)) / limit for metric, limit in limits.items()), default=0.0)


def worst_rows(differences: Iterable[Difference]) -> tuple[Row, ...]:
    """The worst difference of every tensor on every rung, in order of first appearance."""
    found: dict[tuple[Rung, str, str], list[Difference]] = {}
    for one in differences:
        found.setdefault((one.rung, one.graph, one.tensor), []).append(one)
    return tuple(map(_row_of, found.values()))


def _row_of(compared: Sequence[Difference]) -> Row:
    limits = limits_for(compared[0])
    peaks = {name: max((getattr(one, name) for one in compared), key=nan_last) for name in GATED}
    worst = max(compared, key=lambda one: share_of(one, limits))
    return Row(num_compared=len(compared), worst=worst, peaks=peaks, limits=limits)


def join_rows(rows: Sequence[Row]) -> Row:
    """One row of those of several tensors that share limits."""
    return Row(
        num_tensors=len(rows),
        num_compared=sum(row.num_compared for row in rows),
        worst=max(rows, key=Row.share).worst,
        peaks={name: max((row.peaks[name] for row in rows), key=nan_last) for name in GATED},
        limits=rows[0].limits,
    )


def nan_last(value: float) -> float:
    """For max(): NaN is worse than any number."""
    return inf if isnan(value) else value


def beyond_limits(differences: Iterable[Difference]) -> list[Difference]:
    """Those that no limit allows, in their order."""
    return [one for one in differences if not share_of(one, limits_for(one)) <= 1]


def limits_for(difference: Difference) -> Limits:
    """Raises SpecError if none is committed for that tensor on that rung."""
    rung, key = str(difference.rung.limits), limit_key(difference.graph, difference.tensor)
    try:
        limits = load_thresholds()[rung][key]
    except KeyError:
        raise SpecError(
            f"{THRESHOLDS} has no limit for '{key}' in stage '{rung}'",
            cause="a graph or a rung was added",
            fix="give it an open limit there, then measure: python -m pvc_export.studies.limits --seeds 6 --write",
        ) from None
    return {metric: limits[metric]["limit"] for metric in GATED}


def limit_key(graph: str, tensor: str) -> str:
    """Cache rows of all layers share one limit: 'temporal/new', 'llm/new'."""
    return f"{graph}/{'new' if tensor.startswith(('new.', 'present.')) else tensor}"


def near_tie(logits: Array, precision: Precision) -> float:
    """The reference's margin, in logits, below which another token is rounding and no fault.

    Both tokens may be off by the committed limit of the logits, which is relative to their root mean square.
    """
    limit = load_thresholds()[f"bundle {precision}"]["head/logits"]["rel_l2"]["limit"]
    return 2 * limit * float(np.sqrt(np.mean(np.square(logits, dtype=np.float64))))


def load_thresholds() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Rung -> 'graph/tensor' -> metric -> 'limit', and the 'measured' value that it comes from."""
    limits: dict[str, dict[str, dict[str, dict[str, float]]]] = thresholds_file()["limits"]
    return limits


def kl_limit(precision: Precision) -> float:
    """The committed limit of Conversation.scaled_kl, at any step of any answer."""
    limit: float = thresholds_file()["kl"][precision]["limit"]
    return limit


@cache
def thresholds_file() -> dict[str, Any]:
    """The whole file: 'limits', 'kl', and under 'measured' when and how they were."""
    data: dict[str, Any] = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    return data
