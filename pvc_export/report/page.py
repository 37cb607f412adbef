"""The report as one HTML file: nothing is fetched, and it can be read without scripts, in print and on a phone.

Models and users wrote some of what it shows. Every text is escaped by the template engine, and control characters are
spelled out (text.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from engines.spec import GRAPH_NAMES

from ..parity.culprit.record import INNOCENT
from ..parity.drift.report import Drift
from ..parity.levels import TITLES, Verdict
from ..parity.limits import kl_limit, load_thresholds, thresholds_file
from .given import ReportInput
from .sections import drift_rows, panels, topics
from .template import fill

METRICS = {"rel_l2": "relative L2", "worst_token": "worst token", "cosine_gap": "1 − cosine", "norm_gap": "norm"}
REACH = {"error": (1e-1, 1e4), "range": (1e-6, 1e2)}
"""Shares of a limit between which the culprit's bars run: its error, and its values in its dtype."""


class Given(Protocol):
    """A finished check, and when and where it was made."""

    @property
    def parity(self) -> CheckReport: ...
    @property
    def command(self) -> str: ...
    @property
    def computed(self) -> str: ...
    def next_command(self) -> tuple[str, str]: ...
    def to_json(self) -> dict[str, Any]: ...


class CheckReport(Protocol):
    """What every report of a check can say, of a bundle or of any graph."""

    @property
    def passed(self) -> bool: ...
    def outcome(self) -> str: ...
    def summary(self) -> str: ...
    def failure_text(self) -> str: ...
    def faults(self) -> Sequence[Told]: ...
    def left_out(self) -> dict[str, str]: ...
    def levels(self) -> dict[str, Verdict]: ...


class Told(Protocol):
    @property
    def text(self) -> str: ...


def fill_page(template: str, given: Given, *, drifts: Sequence[Drift], **sections: Any) -> str:
    """A page of that template: what base.html.j2 shows of every check, and the sections of this kind."""
    parity = given.parity
    command, purpose = given.next_command()
    return fill(
        template,
        report=given,
        parity=parity,
        passed=parity.passed,
        outcome=parity.outcome(),
        faults=[fault.text for fault in parity.faults()],
        not_executed=parity.left_out(),
        command=command,
        purpose=purpose,
        levels=parity.levels(),
        titles=TITLES,
        drift=drift_rows(drifts),
        **sections,
    )


def render(report: ReportInput) -> str:
    """The whole page of a bundle."""
    parity, manifest = report.parity, report.manifest
    return fill_page(
        "report.html.j2",
        report,
        drifts=parity.drift.curves if parity.drift else (),
        drift_summary=parity.drift.summary() if parity.drift else "",
        versions=manifest.versions,
        files=manifest.files,
        manifest=manifest,
        metrics=METRICS,
        thresholds=load_thresholds(),
        measured=thresholds_file()["measured"],
        panels=panels(parity),
        kl_limit=kl_limit(parity.precision),
        topics=topics(parity.answers),
        graphs=[name for name in GRAPH_NAMES if name in manifest.graphs],
        innocent=INNOCENT,
        reach=REACH,
    )
