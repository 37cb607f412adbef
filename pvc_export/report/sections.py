"""What the sections of the page show, computed from a report: the ladder, the curves, answers by topic, drift."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import Any

from markupsafe import Markup

from ..parity.drift.statistics import Drift, Series
from ..parity.metrics import GATED, THRESHOLDS, Difference, Row, limit_key, limits_of, load_thresholds
from ..parity.report import ParityReport
from ..parity.words.results import RungAnswers
from .figures import Axis, Curve, curves_figure, drift_figure, interval_figure
from .given import ReportInput
from .text import number, share

METRIC_NAMES = {"rel_l2": "relative L2", "worst_token": "worst token", "cosine_gap": "1 − cosine", "norm_gap": "norm"}
CURVES = {"rel_l2": "a", "worst_token": "b"}
"""The metrics that are drawn, and their colours."""
TRENDS: tuple[tuple[Series, str], ...] = (("beyond", "beyond the floor"), ("gap", "from torch fp32"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The worst of one metric over a kind of tensor. measured: what its limit was made from, if that is written."""

    name: str
    value: float
    limit: float
    measured: float | None
    is_worst: bool

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """All tensors of a stage that share limits: cache rows of every layer are one."""

    name: str
    num_rows: int
    num_compared: int
    passed: bool
    share: float
    where: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A rung beside its neighbour."""

    name: str
    heading: str
    kinds: tuple[Kind, ...]

    @property
    def passed(self) -> bool:
        return all(kind.passed for kind in self.kinds)

    @property
    def share(self) -> float:
        return max(kind.share for kind in self.kinds)


def ladder(parity: ParityReport) -> list[Stage]:
    """Every stage, in the order of the ladder."""
    thresholds, stages = load_thresholds(), list[Stage]()
    for name, rows in parity.stages().items():
        kinds: dict[str, list[Row]] = {}
        for row in rows:
            kinds.setdefault(limit_key(row.graph, row.tensor), []).append(row)
        measured = thresholds.get(limits_of(name), {})
        found = [f for f in parity.found if f.stage == name]
        built = tuple(_kind(key, members, found, measured.get(key, {})) for key, members in kinds.items())
        stages.append(Stage(name=name, heading=parity.heading(name), kinds=built))
    return stages


def _kind(key: str, rows: list[Row], found: list[Difference], measured: dict[str, dict[str, float]]) -> Kind:
    worst = max(rows, key=Row.share)
    members = [row.worst for row in rows] + [f for f in found if limit_key(f.graph, f.tensor) == key]
    values = {name: max((getattr(one, name) for one in members), key=_nan_last) for name in GATED}
    first = max(GATED, key=lambda name: _nan_last(values[name] / worst.limits[name]))
    return Kind(
        name=key,
        num_rows=len(rows),
        num_compared=sum(row.num_compared for row in rows),
        passed=all(row.passed for row in rows),
        share=worst.share(),
        where=worst.worst.where,
        metrics=tuple(
            Metric(
                name=METRIC_NAMES[name],
                value=values[name],
                limit=worst.limits[name],
                measured=measured.get(name, {}).get("measured"),
                is_worst=name == first,
            )
            for name in GATED
        ),
    )


def _nan_last(value: float) -> float:
    return inf if isnan(value) else value


def measured_how() -> dict[str, Any]:
    """When and how the committed limits were measured."""
    header: dict[str, Any] = json.loads(THRESHOLDS.read_text(encoding="utf-8"))["measured"]
    return header


# -- curves ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One small figure. lines: of its legend, (tone, text)."""

    title: str
    figure: Markup
    lines: tuple[tuple[str, str], ...]
    passed: bool


def panels(report: ReportInput) -> dict[str, list[Panel]]:
    """By stage, one for each kind of tensor that was compared in several runs. The bundle itself comes first."""
    stages = sorted(report.parity.stages(), key=lambda name: not name.startswith(("bundle", "gpu")))
    found = {stage: list(_panels_of(report, stage)) for stage in stages}
    return {stage: members for stage, members in found.items() if members}


def _panels_of(report: ReportInput, stage: str) -> Iterator[Panel]:
    limits = {limit_key(row.graph, row.tensor): row.limits for row in report.parity.stages()[stage]}
    series: dict[str, dict[tuple[str, int], list[Difference]]] = {}
    for one in report.parity.found:
        kind, _, index = one.where.partition(" ")
        if one.stage == stage and index.isdigit():
            series.setdefault(limit_key(one.graph, one.tensor), {}).setdefault((kind, int(index)), []).append(one)
    for key, points in series.items():
        if len(points) < 2:
            continue
        axis = _axis(list(points), report.manifest.limits.window)
        curves = [
            Curve(
                name=METRIC_NAMES[metric],
                values=tuple(_worst(metric, group) for group in points.values()),
                limit=limits[key][metric],
                tone=tone,
            )
            for metric, tone in CURVES.items()
        ]
        lines = tuple((curve.tone, _legend(curve, axis)) for curve in curves)
        bad = any(not value <= (curve.limit or inf) for curve in curves for value in curve.values)
        yield Panel(title=key, figure=curves_figure(f"{stage}, {key}", curves, axis), lines=lines, passed=not bad)


def _worst(metric: str, group: list[Difference]) -> float:
    return max((float(getattr(one, metric)) for one in group), key=_nan_last)


def _axis(runs: Sequence[tuple[str, int]], window: int) -> Axis:
    """Frames have the window's marks and the clock's jumps; passes and tokens do not."""
    name, labels = runs[0][0], [index for _, index in runs]
    marks, jumps = dict[int, str](), set[int]()
    if name == "frame":
        names = {window - 1: "W-1", window: "W", window + 1: "W+1", 2 * window: "2W", 2 * window + 1: "2W+1"}
        jumps = {i for i in range(1, len(labels)) if labels[i] != labels[i - 1] + 1}
        first = min(jumps, default=len(labels))
        marks = {i: names[label] for i, label in enumerate(labels[:first]) if label in names}
    return Axis(name=name, labels=tuple(labels), marks=marks, jumps=frozenset(jumps))


def _legend(curve: Curve, axis: Axis) -> str:
    worst = max(range(len(curve.values)), key=lambda index: _nan_last(curve.values[index]))
    value, limit = curve.values[worst], curve.limit or inf
    where = f"{axis.name} {axis.labels[worst]}"
    if not isfinite(value):
        return f"{curve.name}: {number(value)} at {where}, limit {number(limit)}"
    return f"{curve.name}: {number(value)} at {where}, {share(value / limit)} of {number(limit)}"


# -- answers and drift -------------------------------------------------------------------------------------------


def topics(answers: Sequence[RungAnswers]) -> list[str]:
    return sorted({topic for rung in answers for topic in rung.count})


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftRow:
    """One tensor over a long stream; change: of its error, with the slope's interval."""

    tensor: str
    verdict: str
    figure: Markup
    floor: str
    error: str
    change: str
    intervals: tuple[tuple[str, Markup, str], ...]


def drift_rows(curves: Iterable[Drift]) -> list[DriftRow]:
    rows = []
    for curve in curves:
        intervals = []
        for series, name in TRENDS:
            trend, unit = curve.trend(series), curve.num_frames / curve.noise
            text = trend.share_text(curve.num_frames, curve.noise)
            ends = (trend.slope * unit, trend.lower * unit, trend.upper * unit)
            intervals.append((name, interval_figure(*ends, title=f"{name}: {text}"), text))
        first, last = curve.means[0], curve.means[-1]
        dots = [
            ("floor", [(sample.frame, sample.floor) for sample in curve.samples]),
            ("a", [(sample.frame, sample.error) for sample in curve.samples]),
        ]
        rows.append(
            DriftRow(
                tensor=curve.tensor,
                verdict=curve.verdict,
                figure=drift_figure(f"drift of {curve.tensor}", curve.num_frames, dots),
                floor=f"{number(first.floor)} → {number(last.floor)}",
                error=f"{number(first.error)} → {number(last.error)}",
                change=curve.trend("error").text(curve.num_frames),
                intervals=tuple(intervals),
            )
        )
    return rows
