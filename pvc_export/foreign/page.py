"""The report of a graph of any origin as one HTML file, made like that of a bundle (html/), and as JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engines.manifest import FileEntry

from ..report.figures import Axis, Curve, curves_figure
from ..report.junit import Case, document
from ..report.sections import Panel, drift_rows
from ..report.template import fill
from ..report.text import share
from .levels import FORCED, OWN
from .limits import Compared
from .report import TITLES, Finding, ForeignReport, Level

TEMPLATE = "foreign.html.j2"
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
MOST_PANELS = 24
"""Outputs whose curves are drawn: a cache has one for every layer, and those that are closest to their limit tell."""
TONES = {OWN: "a", FORCED: "b"}
"""Colours of the runs of a stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignInput:
    """A check of any graph, when and on what it was made, and the file that was checked (without weights beside it)."""

    report: ForeignReport
    checked_utc: str
    machine: str
    versions: dict[str, str]
    file: FileEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstOf:
    """One output at one level: the comparison that uses most of its limit, of so many."""

    level: str
    tensor: str
    num_compared: int
    worst: Compared
    passed: bool


def render(given: ForeignInput) -> str:
    """The whole page."""
    report = given.report
    panels = curves(report.level("D"))
    return fill(
        TEMPLATE,
        given=given,
        report=report,
        titles=TITLES,
        not_executed=not_executed(report),
        rows=worst_of_all(report),
        panels=panels[:MOST_PANELS],
        drift=drift_rows(sorted(report.drifts, key=lambda drift: drift.verdict == "ok")[:MOST_PANELS]),
        num_panels_left=max(len(panels) - MOST_PANELS, 0),
        findings=[finding for level in report.levels for finding in level.findings],
    )


def not_executed(report: ForeignReport) -> list[tuple[str, str]]:
    """What was not run, and why."""
    whole = [(f"{x.letter} {TITLES[x.letter]}", x.not_executed) for x in report.levels if x.not_executed is not None]
    parts = [(f"of {x.letter} {TITLES[x.letter]}", text) for x in report.levels for text in x.left_out]
    missing = [("float64 floor", report.floor_missing)] if report.floor_missing is not None else []
    return [*whole, *parts, *missing]


def worst_of_all(report: ForeignReport) -> list[WorstOf]:
    return [row for level in report.levels for row in worst_of(level)]


def worst_of(level: Level) -> Iterator[WorstOf]:
    """By output, in the order in which they were compared."""
    by_tensor: dict[str, list[Compared]] = {}
    for found in level.compared:
        by_tensor.setdefault(found.tensor, []).append(found)
    for tensor, group in by_tensor.items():
        yield WorstOf(
            level=level.letter,
            tensor=tensor,
            num_compared=len(group),
            worst=max(group, key=Compared.share),
            passed=all(found.passed for found in group),
        )


def curves(level: Level) -> list[Panel]:
    """How much of its limit every output of a stream uses, step by step; the worst first.

    Both runs are in one panel where they have the same steps: a run may end early.
    """
    runs: dict[tuple[str, str], list[Compared]] = {}
    for found in level.compared:
        runs.setdefault((found.tensor, found.run), []).append(found)
    drawn: dict[tuple[str, tuple[int, ...]], dict[str, list[Compared]]] = {}
    for (tensor, run), group in runs.items():
        drawn.setdefault((tensor, tuple(found.step for found in group)), {})[run] = group
    panels = [
        (max(found.share() for group in members.values() for found in group), _panel(tensor, steps, members))
        for (tensor, steps), members in drawn.items()
        if len(steps) > 1
    ]
    return [panel for _, panel in sorted(panels, key=lambda pair: -pair[0])]


def _panel(tensor: str, steps: tuple[int, ...], runs: dict[str, list[Compared]]) -> Panel:
    drawn = [(run, runs[run], tone) for run, tone in TONES.items() if run in runs]
    lines = [
        Curve(name=run, values=tuple(found.share() for found in group), limit=1.0, tone=tone)
        for run, group, tone in drawn
    ]
    axis = Axis(name="step", labels=steps, marks={}, jumps=frozenset())
    worst = [(run, max(group, key=Compared.share), tone) for run, group, tone in drawn]
    return Panel(
        title=tensor,
        figure=curves_figure(f"share of its limit, {tensor}", lines, axis),
        lines=tuple((tone, f"{run}: {share(one.share())} of its limit at step {one.step}") for run, one, tone in worst),
        passed=all(one.passed for _, one, _ in worst),
    )


def junit(given: ForeignInput) -> str:
    """A suite for each level, a case for each of its outputs; what was not executed is skipped."""
    report = given.report
    facts = {
        "reference": report.reference,
        "dtype": report.computed(),
        "limit": report.rule(),
        "sha256": given.file.sha256,
        "machine": given.machine,
        "command": report.whole_command(),
    }
    cases = (case for level in report.levels for case in _cases(level))
    return document(f"parity of {report.graph}", cases, facts, checked_utc=given.checked_utc)


def _cases(level: Level) -> Iterator[Case]:
    suite, title = f"level {level.letter}", TITLES[level.letter]
    rows = list(worst_of(level))
    of_outputs = {row.tensor for row in rows}
    for row in rows:
        yield Case(
            suite=suite,
            group="output",
            name=f"{row.tensor} ({row.num_compared} compared)",
            failure=_told(finding for finding in level.findings if finding.tensor == row.tensor),
            details=f"{row.worst.text()}, {share(row.worst.share())} of its limit at step {row.worst.step}",
        )
    yield Case(
        suite=suite,
        group="level",
        name=title,
        failure=_told(finding for finding in level.findings if finding.tensor not in of_outputs),
        skipped=level.not_executed,
        details=level.note,
    )
    for text in level.left_out:
        yield Case(suite=suite, group="left out", name=text.partition(":")[0], skipped=text)


def _told(findings: Iterator[Finding]) -> str | None:
    return "\n".join(f"{x.line()}\n{x.forced}\nLikely {x.likely}".replace("\n\n", "\n") for x in findings) or None
