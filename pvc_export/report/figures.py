"""Figures as inline SVG and spans: bars on a log scale, curves over a stream, heat maps over a frame, intervals.

Coordinates never come from non-finite numbers. A non-finite value is drawn as a cross at the top of its figure, and a
zero, which has no logarithm, as a ring at the bottom. Colours come from style.css.j2, so dark mode works too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from engines.memory import Array
from engines.metrics import TINY

from ..parity.drift.report import Drift
from ..parity.drift.statistics import Trend
from ..parity.heat import HeatMap
from ..terminal.numbers import number, share
from .text import clean

WIDTH, HEIGHT = 330, 172
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 16, 22
MAX_HEAT_PIXELS = 224
HEAT = (235, 104, 52)
HOT = (208, 59, 59)
CAMEL_CASE = ("viewBox", "preserveAspectRatio")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Values at the positions of an axis, with their limit."""

    name: str
    values: tuple[float, ...]
    limit: float
    tone: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """The x axis: labels in order, and marks.

    marks   index -> mark: 'W';  jumps  indices before which the clock jumps
    """

    name: str
    labels: tuple[int, ...]
    marks: dict[int, str]
    jumps: frozenset[int]

    def positions(self) -> list[float]:
        """Positions 0, 1, 2, ..., with two more steps at every jump, scaled to the plot."""
        steps, at = list[float](), 0.0
        for index in range(len(self.labels)):
            at += 3.0 if index in self.jumps else 1.0
            steps.append(at)
        first, span = steps[0], max(steps[-1] - steps[0], 1.0)
        return [LEFT + 6 + (step - first) / span * (WIDTH - LEFT - RIGHT - 12) for step in steps]


def bar(value: float, *, low: float = 1e-3, high: float = 10.0) -> Markup:
    """A fraction of a limit as a bar on a log scale, with the limit (1) as a tick. Outside the scale it is full or
    empty."""
    scale = log10(high / low)
    filled = 0.0 if value == 0 else 1.0 if not isfinite(value) else log10(max(value, low) / low) / scale
    tick = -log10(low) / scale
    state = "ok" if value <= 1 else "bad"
    return Markup('<span class="bar {}" role="img" aria-label="{} of the limit"><i style="width:{:.1f}%"></i>'
                  '<b style="left:{:.1f}%"></b></span>').format(
        state, share(value), 100 * min(max(filled, 0.01 if value else 0.0), 1.0), 100 * tick
    )  # fmt: skip


def curves_figure(title: str, curves: Sequence[Curve], axis: Axis) -> Markup:
    """Curves with their limits, log y. The page adds the caption."""
    scale = _LogScale.around([value for curve in curves for value in (*curve.values, curve.limit)])
    xs = axis.positions()
    parts = [*_grid(scale), *_x_axis(axis, xs)]
    for curve in curves:
        y = scale.y(curve.limit)
        parts.append(_tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_=f"limit {curve.tone}"))
        parts.append(_tag("path", d=_line(curve, axis, xs, scale), class_=f"line {curve.tone}"))
        for x, label, value in zip(xs, axis.labels, curve.values, strict=True):
            parts.append(_point(x, value, scale, curve, f"{axis.name} {label}"))
    return _svg(title, parts)


def drift_figure(curve: Drift) -> Markup:
    """Noise floor and error of every sample as dots over a long stream, log y."""
    dots = {"floor": [(s.frame, s.floor) for s in curve.samples], "a": [(s.frame, s.error) for s in curve.samples]}
    scale = _LogScale.around([value for series in dots.values() for _, value in series])
    parts = list(_grid(scale))
    width = WIDTH - LEFT - RIGHT
    for index in range(5):
        x = LEFT + width * index / 4
        anchor = "start" if index == 0 else "end" if index == 4 else "middle"
        label = f"{curve.num_frames * index / 4:.0f}"
        parts.append(_tag("text", label, x=f"{x:.1f}", y=HEIGHT - 7, class_="tick", text_anchor=anchor))
    for tone, series in dots.items():
        spots = [
            f"M{LEFT + width * frame / max(curve.num_frames, 1):.1f} {scale.y(value):.1f}h0"
            for frame, value in series
            if isfinite(frame) and isfinite(value)
        ]
        parts.append(_tag("path", d="".join(spots), class_=f"dots {tone}"))
        lost = sum(not isfinite(value) for _, value in series)
        if lost:
            parts.append(_tag("text", f"{lost} NaN or ∞", x=WIDTH - RIGHT, y=TOP - 5, class_="lost", text_anchor="end"))
    return _svg(f"drift of {curve.tensor}", parts)


def interval_figure(trend: Trend, unit: float, title: str) -> Markup:
    """A trend with its interval, on -150% to 150% of the allowed change. unit: a slope of 1, as that fraction."""
    value, lower, upper = (unit * end for end in (trend.slope, trend.lower, trend.upper))
    if not all(isfinite(x) for x in (value, lower, upper)):
        return Markup('<span class="lost">not finite</span>')

    def x(share_: float) -> float:
        return 70 + 60 * min(max(share_, -1.15), 1.15)

    state = "bad" if lower > 1 else "ok"
    parts = [
        _tag("path", d="M4 9H136", class_="grid"),
        *(_tag("path", d=f"M{x(at):.1f} 3V15", class_="limit bad" if at else "axis") for at in (-1.0, 0.0, 1.0)),
        _tag("path", d=f"M{x(lower):.1f} 9H{x(upper):.1f}", class_=f"whisker {state}"),
        _tag("circle", cx=f"{x(value):.1f}", cy=9, r=3.5, class_=f"dot {state}"),
    ]
    return _tag("svg", *parts, viewBox="0 0 140 18", class_="interval", role="img", aria_label=title)


def heat_figure(heat: HeatMap) -> Markup:
    """The frame in grey, overlaid with every token's error, and the worst token in a box. Red is over the limit."""
    rows, columns = heat.errors.shape
    row, column = heat.peak
    size = 200.0
    grey = Image.fromarray(heat.frame).convert("L").resize((MAX_HEAT_PIXELS, MAX_HEAT_PIXELS))
    overlay = Image.fromarray(_overlay(heat))
    high, wide = size / rows, size / columns
    parts = [
        _tag("image", href=_png(grey), width="200", height="200", preserveAspectRatio="none"),
        _tag("image", href=_png(overlay), width="200", height="200", preserveAspectRatio="none", class_="px"),
        _tag("rect", x=f"{column * wide:.2f}", y=f"{row * high:.2f}", width=f"{wide:.2f}", height=f"{high:.2f}",
             class_="peak"),
    ]  # fmt: skip
    label = f"{heat.at.name}, {heat.at.where}: error of every token, worst {number(heat.worst)}"
    return _tag("svg", *parts, viewBox="0 0 200 200", class_="heat", role="img", aria_label=label)


def _overlay(heat: HeatMap) -> Array:
    """RGBA uint8, one pixel per token: transparent up to the map's median, opaque at its worst. Tokens over the limit
    are always visible."""
    errors = heat.errors
    finite = errors[np.isfinite(errors)]
    base, top = (float(np.median(finite)), float(finite.max())) if finite.size else (0.0, 0.0)
    strength = (np.where(np.isfinite(errors), errors, top) - base) / max(top - base, TINY)
    strength[~np.isfinite(errors)] = 1.0
    hot = ~(errors <= heat.limit)  # also true for NaN
    pixels = np.zeros((*errors.shape, 4), np.uint8)
    pixels[..., :3] = np.where(hot[..., None], HOT, HEAT)
    pixels[..., 3] = np.round(225 * np.clip(strength, np.where(hot, 0.5, 0.0), 1))
    return pixels


# -- pieces ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _LogScale:
    """Whole decades, low to high, over the plot's height."""

    low: int
    high: int

    @staticmethod
    def around(values: Iterable[float]) -> _LogScale:
        usable = [value for value in values if isfinite(value) and value > 0]
        if not usable:
            return _LogScale(low=-12, high=0)
        low, high = floor(log10(min(usable))), ceil(log10(max(usable)) + 0.05)
        return _LogScale(low=low, high=max(high, low + 1))

    def y(self, value: float) -> float:
        """The y coordinate of a value, always inside the plot."""
        if not isfinite(value):
            return TOP
        exponent = log10(value) if value > 0 else self.low
        part = (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)


def _grid(scale: _LogScale) -> Iterable[Markup]:
    step = ceil((scale.high - scale.low) / 5)
    for exponent in range(scale.low, scale.high + 1):
        y = scale.y(10.0**exponent)
        base = exponent == scale.low
        yield _tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="axis" if base else "grid")
        if (exponent - scale.low) % step == 0:
            yield _tag("text", f"1e{exponent}", x=LEFT - 5, y=f"{y + 3:.1f}", class_="tick", text_anchor="end")


def _x_axis(axis: Axis, xs: Sequence[float]) -> Iterable[Markup]:
    """Labels where there is space, in this order: the ends, the named marks and the jumps, then other marks."""
    bottom = HEIGHT - BOTTOM
    for index in axis.jumps:
        middle = (xs[index - 1] + xs[index]) / 2
        yield _tag("path", d=f"M{middle:.1f} {TOP}V{bottom}", class_="jump")
    named = [index for index, name in axis.marks.items() if name in ("W", "2W")]
    for index, name in axis.marks.items():
        top, kind = (TOP, "mark") if index in named else (bottom - 4, "notch")
        yield _tag("path", d=f"M{xs[index]:.1f} {top}V{bottom + 3}", class_=kind)
        if index in named:
            yield _tag("text", name, x=f"{xs[index]:.1f}", y=TOP - 5, class_="tick", text_anchor="middle")
    wanted = [0, *named, *sorted(axis.jumps), len(xs) - 1, *axis.marks, *range(len(xs))]
    taken: list[tuple[float, float]] = []
    for index in dict.fromkeys(wanted):
        label = str(axis.labels[index])
        x = min(xs[index], WIDTH - 3 * len(label) - 1)
        half = 3.1 * len(label) + 1.5
        if all(x + half <= left or x - half >= right for left, right in taken):
            taken.append((x - half, x + half))
            yield _tag("text", label, x=f"{x:.1f}", y=HEIGHT - 7, class_="tick", text_anchor="middle")


def _line(curve: Curve, axis: Axis, xs: Sequence[float], scale: _LogScale) -> str:
    """Path of a curve, broken at non-finite values and at the clock's jumps."""
    path, is_open = list[str](), False
    for index, value in enumerate(curve.values):
        if not isfinite(value):
            is_open = False
            continue
        is_open = is_open and index not in axis.jumps
        path.append(f"{'L' if is_open else 'M'}{xs[index]:.1f} {scale.y(value):.1f}")
        is_open = True
    return "".join(path)


def _point(x: float, value: float, scale: _LogScale, curve: Curve, where: str) -> Markup:
    title = _tag("title", f"{curve.name} {number(value)} at {where}")
    y = scale.y(value)
    if not isfinite(value):
        cross = _tag("path", title, d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6", class_="cross")
        return cross + _tag("text", number(value), x=f"{x:.1f}", y=f"{y + 13:.1f}", class_="lost", text_anchor="middle")
    kind, tone = "zero" if value == 0 else "dot", "bad" if value > curve.limit else curve.tone
    return _tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.2, class_=f"{kind} {tone}")


def _svg(title: str, parts: Iterable[Markup]) -> Markup:
    return _tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="plot", role="img", aria_label=title)


def _tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """One element. Text and attributes are cleaned and escaped, except children that are already Markup."""
    written = "".join(
        f' {key if key in CAMEL_CASE else key.rstrip("_").replace("_", "-")}="{_clean(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{''.join(map(_clean, children))}</{name}>")


def _clean(text: str) -> Markup:
    return escape(text if isinstance(text, Markup) else clean(text))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
