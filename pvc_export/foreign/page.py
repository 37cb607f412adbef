"""HTML page and JUnit XML of a graph check: the sections that a bundle's report does not have."""

from __future__ import annotations

from collections.abc import Iterator

from engines.manifest import hash_file

from ..parity.levels import TITLES
from ..parity.metrics import Difference
from ..report.figures import Axis, Curve
from ..report.junit import Case, Cases, document, verdict_cases
from ..report.page import METRICS
from ..report.sections import Panel, make_panel
from ..report.template import fill
from ..terminal.facts import installed
from ..terminal.numbers import share
from .report import ForeignReport
from .runs import FORCED, OWN

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
MOST_PANELS = 24
"""Number of outputs whose curves are drawn, those closest to their limit. A cache has one output per layer."""
TONES = {OWN: "a", FORCED: "b"}
"""Colours of a stream's runs."""


def render(report: ForeignReport) -> str:
    """The whole page."""
    panels = curves(report)
    return fill(
        "foreign.html.j2",
        report=report,
        parity=report,
        titles=TITLES,
        drift=sorted(report.drifts, key=lambda drift: drift.verdict == "ok")[:MOST_PANELS],
        drift_summary="Stream in which each side keeps its own states",
        versions=installed(PACKAGES),
        files={report.graph: hash_file(report.declared.path)},
        metrics={"max_abs": "max abs", **METRICS},
        panels=panels[:MOST_PANELS],
        num_panels_left=max(len(panels) - MOST_PANELS, 0),
    )


def curves(report: ForeignReport) -> list[Panel]:
    """Share of its limit that each output of a stream uses, step by step; the worst first.

    Both runs share a panel if they have the same steps: a run may end early.
    """
    drawn: dict[tuple[str, tuple[int, ...]], dict[str, list[Difference]]] = {}
    compared = report.compared("D")
    for tensor in dict.fromkeys(one.tensor for one in compared):
        for run in TONES:
            members = [one for one in compared if one.tensor == tensor and one.where.run == run]
            drawn.setdefault((tensor, tuple(one.where.index for one in members)), {})[run] = members
    panels = []
    for (tensor, steps), runs in drawn.items():
        if len(steps) > 1:
            lines = [
                Curve(name=run, values=tuple(found.share() for found in group), limit=1.0, tone=TONES[run])
                for run, group in runs.items()
            ]
            worst = {run: max(group, key=Difference.share) for run, group in runs.items()}
            said = [f"{run}: {share(one.share())} of its limit at step {one.where.index}" for run, one in worst.items()]
            axis = Axis(name="step", labels=steps, marks={}, jumps=frozenset())
            panel = make_panel(tensor, f"share of its limit, {tensor}", lines, axis, said)
            panels.append((max(one.share() for one in worst.values()), panel))
    return [panel for _, panel in sorted(panels, key=lambda pair: -pair[0])]


def junit(report: ForeignReport) -> str:
    """One suite per level, one case per output; cases that were not executed are marked skipped."""
    facts = {
        "reference": report.request.reference,
        "dtype": report.computed(),
        "limit": report.rule(),
        "sha256": hash_file(report.declared.path).sha256,
        "machine": report.machine,
        "command": report.command,
    }
    return document(f"parity of {report.graph}", _cases(report), facts, checked_utc=report.checked_utc)


def _cases(report: ForeignReport) -> Iterator[Case]:
    """One case per output and level, per aborted run, and per rule, drift and level."""
    for level, rows in report.rows().items():
        case, suite = Cases(fault for fault in report.diagnosed if fault.level == level), f"level {level}"
        for row in rows:
            yield case.of_row(row, row.tensor, suite, "output", row.tensor)
    for fault in report.diagnosed:
        if fault.kind == "stopped":
            yield Case(suite=f"level {fault.level}", group="run", name=fault.about or "runs", failure=fault.text)
    case = Cases(report.diagnosed)
    for drift in report.drifts:
        yield case("drift", drift.tensor, "level E", "drift", drift.tensor)
    yield from verdict_cases(report.rules, report.levels(), report.unshown())
