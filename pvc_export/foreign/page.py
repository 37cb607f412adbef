"""The report of a graph of any origin as an HTML page and as JUnit XML: the sections that a bundle's do not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engines.manifest import FileEntry

from ..report.figures import Axis, Curve
from ..report.given import now_utc, this_machine
from ..report.junit import Case, document
from ..report.page import fill_page
from ..report.sections import Panel, make_panel
from ..report.text import share
from ..terminal.facts import installed
from .levels import FORCED, OWN
from .limits import Compared
from .report import ForeignReport, Level

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
MOST_PANELS = 24
"""Outputs whose curves are drawn: a cache has one for every layer, and those that are closest to their limit tell."""
TONES = {OWN: "a", FORCED: "b"}
"""Colours of the runs of a stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignInput:
    """A finished check of any graph, and its circumstances: by default it was just made, on this machine.

    file  of the graph, without weights beside it: called if a report is made, since hashing gigabytes takes its time
    """

    parity: ForeignReport
    file: Callable[[], FileEntry]
    checked_utc: str = field(default_factory=now_utc)
    machine: str = field(default_factory=this_machine)

    @property
    def command(self) -> str:
        return self.parity.whole_command()

    @property
    def computed(self) -> str:
        return self.parity.computed()

    def next_command(self) -> tuple[str, str]:
        return self.parity.next_command()

    def to_json(self) -> dict[str, Any]:
        return self.parity.to_json()


def render(given: ForeignInput) -> str:
    """The whole page."""
    report = given.parity
    panels = curves(report.level("D"))
    drifts = sorted(report.drifts, key=lambda drift: drift.verdict == "ok")[:MOST_PANELS]
    return fill_page(
        "foreign.html.j2",
        given,
        drifts=drifts,
        drift_summary="Of the stream with its own states",
        versions=installed(PACKAGES),
        files={report.graph: given.file()},
        rows=[
            (level, name, group, worst_of(group)) for level in report.results for name, group in level.rows().items()
        ],
        panels=panels[:MOST_PANELS],
        num_panels_left=max(len(panels) - MOST_PANELS, 0),
    )


def worst_of(group: list[Compared]) -> Compared:
    return max(group, key=Compared.share)


def curves(level: Level) -> list[Panel]:
    """How much of its limit every output of a stream uses, step by step; the worst first.

    Both runs are in one panel where they have the same steps: a run may end early.
    """
    drawn: dict[tuple[str, tuple[int, ...]], dict[str, list[Compared]]] = {}
    for tensor, group in level.rows().items():
        for run in TONES:
            members = [found for found in group if found.run == run]
            drawn.setdefault((tensor, tuple(found.step for found in members)), {})[run] = members
    panels = []
    for (tensor, steps), runs in drawn.items():
        if len(steps) > 1:
            lines = [
                Curve(name=run, values=tuple(found.share() for found in group), limit=1.0, tone=TONES[run])
                for run, group in runs.items()
            ]
            worst = {run: worst_of(group) for run, group in runs.items()}
            said = [f"{run}: {share(one.share())} of its limit at step {one.step}" for run, one in worst.items()]
            axis = Axis(name="step", labels=steps, marks={}, jumps=frozenset())
            panel = make_panel(tensor, f"share of its limit, {tensor}", lines, axis, said)
            panels.append((max(one.share() for one in worst.values()), panel))
    return [panel for _, panel in sorted(panels, key=lambda pair: -pair[0])]


def junit(given: ForeignInput) -> str:
    """A suite for each level, a case for each of its outputs; what was not executed is skipped."""
    report = given.parity
    facts = {
        "reference": report.reference,
        "dtype": report.computed(),
        "limit": report.rule(),
        "sha256": given.file().sha256,
        "machine": given.machine,
        "command": given.command,
    }
    cases = (case for level in report.results for case in _cases(level))
    return document(f"parity of {report.graph}", cases, facts, checked_utc=given.checked_utc)


def _cases(level: Level) -> Iterator[Case]:
    suite, verdict = f"level {level.letter}", level.verdict
    wrong: dict[str | None, list[str]] = {}
    rows = level.rows()
    for finding in level.findings:
        wrong.setdefault(finding.tensor if finding.tensor in rows else None, []).append(finding.text)
    for tensor, group in rows.items():
        worst, name = worst_of(group), f"{tensor} ({len(group)} compared)"
        details = f"{worst.text()}, {share(worst.share())} of its limit at step {worst.step}"
        failure = "\n".join(wrong.get(tensor, [])) or None
        yield Case(suite=suite, group="output", name=name, failure=failure, details=details)
    yield Case(
        suite=suite,
        group="level",
        name=level.title,
        failure="\n".join(wrong.get(None, [])) or None,
        skipped=level.not_executed,
        details=verdict.detail,
    )
    for run, why in level.left_out.items():
        yield Case(suite=suite, group="left out", name=run, skipped=why)
