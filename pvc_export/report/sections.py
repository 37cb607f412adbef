"""The curves of the page, computed from a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup

from ..parity.limits import kind_of, nan_last
from ..parity.metrics import Difference
from ..parity.places import Place, Rung
from ..parity.report import ParityReport
from ..terminal.numbers import number, share
from .figures import Axis, Curve, curves_figure

CURVES = {"rel_l2": ("relative L2", "a"), "worst_token": ("worst token", "b")}
"""The plotted metrics, with their names and colours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One small figure. lines: its legend, as (tone, text)."""

    title: str
    figure: Markup
    lines: tuple[tuple[str, str], ...]
    passed: bool


def panels(parity: ParityReport) -> dict[str, list[Panel]]:
    """Rung -> one panel per kind of tensor that was compared in several runs. The bundle itself comes first."""
    rungs = sorted(parity.kinds(), key=lambda rung: rung.kind not in ("bundle", "gpu"))
    found = {str(rung): list(_panels_of(parity, rung)) for rung in rungs}
    return {rung: members for rung, members in found.items() if members}


def _panels_of(parity: ParityReport, rung: Rung) -> Iterator[Panel]:
    series: dict[tuple[str, str], dict[Place, list[Difference]]] = {}
    for one in parity.differences:
        if one.rung == rung and one.where.is_numbered and one.limits:
            key = kind_of(one.graph, one.tensor), one.where.kind
            series.setdefault(key, {}).setdefault(one.where, []).append(one)
    for (name, kind), points in series.items():
        if len(points) < 2:
            continue
        axis, groups = _axis(list(points), parity.window), list(points.values())
        curves = [_curve(metric, groups) for metric in CURVES if metric in groups[0][0].limits]
        title = name if kind == "frame" else f"{name}, by {kind}"
        yield make_panel(title, f"{rung}, {title}", curves, axis, [_legend(curve, axis) for curve in curves])


def _curve(metric: str, groups: Sequence[list[Difference]]) -> Curve:
    """The worst layer at every place. Layers have different limits; the limit line is that of the layer closest to its
    own."""
    name, tone = CURVES[metric]
    worst = [max(group, key=lambda one: nan_last(getattr(one, metric)) / one.limits[metric]) for group in groups]
    limit = max(worst, key=lambda one: nan_last(getattr(one, metric)) / one.limits[metric]).limits[metric]
    return Curve(name=name, values=tuple(float(getattr(one, metric)) for one in worst), limit=limit, tone=tone)


def make_panel(title: str, label: str, curves: Sequence[Curve], axis: Axis, said: Sequence[str]) -> Panel:
    """Make a panel. said: the legend's text for each curve."""
    lines = tuple((curve.tone, text) for curve, text in zip(curves, said, strict=True))
    bad = any(not value <= curve.limit for curve in curves for value in curve.values)
    return Panel(title=title, figure=curves_figure(label, curves, axis), lines=lines, passed=not bad)


def _axis(places: Sequence[Place], window: int) -> Axis:
    """The x axis. Frames have the window's marks and the clock's jumps; passes and tokens do not."""
    name, labels = places[0].kind, [place.index for place in places]
    marks, jumps = dict[int, str](), set[int]()
    if name == "frame":
        names = {window - 1: "W-1", window: "W", window + 1: "W+1", 2 * window: "2W", 2 * window + 1: "2W+1"}
        jumps = {i for i in range(1, len(labels)) if labels[i] != labels[i - 1] + 1}
        first = min(jumps, default=len(labels))
        marks = {i: names[label] for i, label in enumerate(labels[:first]) if label in names}
    return Axis(name=name, labels=tuple(labels), marks=marks, jumps=frozenset(jumps))


def _legend(curve: Curve, axis: Axis) -> str:
    worst = max(range(len(curve.values)), key=lambda index: nan_last(curve.values[index]))
    value, limit = curve.values[worst], curve.limit
    where = f"{axis.name} {axis.labels[worst]}"
    if not isfinite(value):
        return f"{curve.name}: {number(value)} at {where}, limit {number(limit)}"
    return f"{curve.name}: {number(value)} at {where}, {share(value / limit)} of {number(limit)}"
