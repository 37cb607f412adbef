"""Limits: a committed factor times the effect of rounding on this model; and limits that hold for any model.

The noise of a tensor is the worst of each metric over a neighbourhood of its place: all frames of the stream, all
passes of the conversation, all rows of a probe (rounding.py measures it, in the same check). A compared tensor may be
off by a factor times that noise. Where matmuls round their inputs to int8, noise comes in whole codes: a place where by
chance no code differed counts as if one had (`least`). thresholds.json has the factors, the ceilings of the noise
itself, the limits of KL and near ties, which do not depend on one model's rounding, and the experiment behind them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import SpecError
from engines.memory import Array
from engines.spec import Precision, Rounding

from .metrics import Difference, Limits
from .places import Rung

THRESHOLDS = Path(__file__).with_name("thresholds.json")
GATED = ("rel_l2", "worst_token", "worst_value", "cosine_gap", "norm_gap")
"""The metrics that have limits; all of them must hold."""
SHOWN = (*GATED, "max_abs")
"""The metrics whose worst a row keeps: a graph of any origin may also have a limit of the largest error."""
FLOOR = 1e-12
"""The smallest limit: what float64, in which differences are computed, can still distinguish from zero."""
CANCELLED = 0.1
"""Errors partly cancel in the norm, at a few places by chance almost completely. So the norm's noise counts as at least
this fraction of the relative L2's noise."""


class NoiseTable:
    """Rounding noise of every tensor of a model, from the differences of its `torch` rungs."""

    def __init__(self, differences: Iterable[Difference], rounding: Rounding | None = None) -> None:
        """rounding: the coarsest rounding in the measured model, if coarser than its dtype's."""
        self._rounding = rounding
        self._noise: dict[tuple[Precision, str, str], Limits] = {}
        self.add(differences)

    def add(self, differences: Iterable[Difference]) -> None:
        """Add measurements; the noise is the worst of all."""
        for one in differences:
            if one.rung.kind == "torch":
                noise = self._noise.setdefault((one.rung.dtype, one.name, one.where.kind), dict.fromkeys(GATED, 0.0))
                for metric in GATED:
                    noise[metric] = max(noise[metric], float(getattr(one, metric)), key=nan_last)

    def at(self, one: Difference) -> Limits:
        """The noise of a compared tensor at this kind of place, or if none was measured there, at any.

        Raises SpecError if no noise was measured for it at all.
        """
        own = self._noise.get((one.rung.dtype, one.name, one.where.kind))
        if own is not None:
            return own
        others = [noise for key, noise in self._noise.items() if key[:2] == (one.rung.dtype, one.name)]
        if not others:
            raise SpecError(
                f"no rounding noise was measured for '{one.name}' in {one.rung.dtype}",
                cause="a tensor was added without measuring its noise",
            )
        return {metric: max((noise[metric] for noise in others), key=nan_last) for metric in GATED}

    def judged(self, one: Difference) -> Difference:
        """The difference with its noise and limits. Noise itself is limited by the ceiling of its dtype."""
        if one.flaw:
            return one
        if one.rung.kind == "torch":
            ceiling = thresholds()["ceilings"][self._rounding or one.rung.dtype]
            return replace(one, noise={}, limits={"rel_l2": ceiling})
        least = thresholds()["least"].get(self._rounding, {})
        noise = {metric: max(value, least.get(metric, 0.0), key=nan_last) for metric, value in self.at(one).items()}
        noise = noise | {"norm_gap": max(noise["norm_gap"], CANCELLED * noise["rel_l2"], key=nan_last)}
        factors = factors_of(one.rung)
        return replace(one, noise=noise, limits={name: max(factors[name] * noise[name], FLOOR) for name in GATED})


def factors_of(rung: Rung) -> Limits:
    """Metric -> allowed multiple of the noise. Raises SpecError for a rung without factors."""
    try:
        factors: Limits = thresholds()["factors"][str(rung.limits)]
    except KeyError:
        raise SpecError(
            f"{THRESHOLDS} has no factors for '{rung}'",
            cause="a rung was added without measuring its factors",
            fix="measure them: python -m pvc_export.studies.limits --write",
        ) from None
    return factors


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The worst of one tensor, or of the same tensor in every layer, on one rung over the stream.

    worst  the difference that uses most of its limits;  peaks  metric -> the difference that uses most of that limit
    """

    num_tensors: int = 1
    num_compared: int
    worst: Difference
    peaks: dict[str, Difference]

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
        """'temporal/new' for the cache rows of every layer."""
        return kind_of(self.graph, self.tensor)

    @property
    def worst_metric(self) -> str:
        return worst_metric(self.worst)

    @property
    def passed(self) -> bool:
        return self.share() <= 1

    def share(self) -> float:
        """Fraction of its limit that the worst metric uses; above 1 fails."""
        return self.worst.share()

    def text(self) -> str:
        """The worst metric, its limit and the limit's origin, in words."""
        worst, metric = self.worst, self.worst_metric
        if worst.flaw:
            return f"{worst.flaw} at {worst.where}"
        limit = worst.limits[metric]
        why = f", {limit / worst.noise[metric]:.3g} times the model's rounding noise" if worst.noise.get(metric) else ""
        return f"{metric.replace('_', ' ')} {getattr(worst, metric):.1e} (limit {limit:.1e}{why}) at {worst.where}"

    def to_json(self) -> dict[str, Any]:
        worst = self.worst
        return {
            "stage": str(self.rung),
            "graph": self.graph,
            "tensor": self.tensor,
            "num_compared": self.num_compared,
            "worst": worst.to_json(),
            "noise": worst.noise,
            "limits": worst.limits,
            "share": self.share(),
            "passed": self.passed,
        }


def worst_metric(one: Difference) -> str:
    """The metric that uses most of its limit."""
    return max(one.limits, key=lambda metric: nan_last(float(getattr(one, metric))) / one.limits[metric], default="")


def worst_rows(differences: Iterable[Difference]) -> tuple[Row, ...]:
    """The worst difference of every tensor on every rung, in order of first appearance. All must have been judged."""
    found: dict[tuple[Rung, str, str], list[Difference]] = {}
    for one in differences:
        found.setdefault((one.rung, one.graph, one.tensor), []).append(one)
    return tuple(map(_row_of, found.values()))


def _row_of(compared: Sequence[Difference]) -> Row:
    return Row(
        num_compared=len(compared),
        worst=max(compared, key=Difference.share),
        peaks={metric: _peak(metric, compared) for metric in SHOWN},
    )


def join_rows(rows: Sequence[Row]) -> Row:
    """Join the rows of several tensors into one."""
    return Row(
        num_tensors=len(rows),
        num_compared=sum(row.num_compared for row in rows),
        worst=max(rows, key=Row.share).worst,
        peaks={metric: _peak(metric, [row.peaks[metric] for row in rows]) for metric in SHOWN},
    )


def _peak(metric: str, compared: Sequence[Difference]) -> Difference:
    """The difference that uses most of that metric's limit, or if it has none, the largest."""
    return max(compared, key=lambda one: nan_last(getattr(one, metric)) / one.limits.get(metric, 1.0))


def nan_last(value: float) -> float:
    """For max(): NaN is worse than any number."""
    return inf if isnan(value) else value


def beyond_limits(differences: Iterable[Difference]) -> list[Difference]:
    """The differences over their limits, in order. All must have been judged."""
    return [one for one in differences if not one.passed]


def kind_of(graph: str, tensor: str) -> str:
    """Common name of a tensor and its counterparts in other layers: 'temporal/new', 'llm/new', 'llm/layer'."""
    if tensor.startswith("layer."):
        return f"{graph}/layer"
    return f"{graph}/{'new' if tensor.startswith(('new.', 'present.')) else tensor}"


def near_tie(logits: Array, rounding: Rounding) -> float:
    """The reference's margin, in logits, below which rounding explains another token.

    Each of the two tokens may be off by a committed fraction of the logits' root mean square.
    """
    off = float(thresholds()["ties"][rounding])
    return 2 * off * float(np.sqrt(np.mean(np.square(logits, dtype=np.float64))))


def kl_limit(rounding: Rounding) -> float:
    """The committed limit of Conversation.scaled_kl, for every step of every answer."""
    limit: float = thresholds()["kl"][rounding]
    return limit


@cache
def thresholds() -> dict[str, Any]:
    """The whole file: 'factors' by rung and metric; 'ceilings', 'least', 'kl' and 'ties' by rounding; and 'measured',
    the experiment they come from."""
    data: dict[str, Any] = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    return data
