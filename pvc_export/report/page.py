"""The report as one HTML file: nothing is fetched, and it can be read without scripts, in print and on a phone.

Unusual: models and users wrote some of what it shows. Every text is escaped by the template engine, and control
characters are spelled out (text.py).
"""

from __future__ import annotations

from engines.spec import GRAPH_NAMES

from ..parity.culprit.find import INNOCENT
from ..parity.levels import IN_A_CHECK, TITLES
from ..parity.metrics import kl_limit
from .given import ReportInput, next_command
from .sections import drift_rows, ladder, measured_how, panels, topics
from .template import fill

TEMPLATE = "report.html.j2"
REACH = {"error": (1e-1, 1e4), "range": (1e-6, 1e2)}
"""Shares of a limit between which the culprit's bars run: its error, and its values in its dtype."""


def render(report: ReportInput) -> str:
    """The whole page."""
    command, purpose = next_command(report)
    return fill(
        TEMPLATE,
        report=report,
        parity=report.parity,
        manifest=report.manifest,
        passed=report.passed,
        faults=report.faults(),
        not_executed=report.not_executed(),
        command=command,
        purpose=purpose,
        levels=report.levels(),
        titles=TITLES,
        in_a_check=IN_A_CHECK,
        stages=ladder(report.parity),
        measured=measured_how(),
        panels=panels(report),
        kl_limit=kl_limit(report.parity.precision),
        topics=topics(report.parity.answers),
        drift=drift_rows(report.drift.curves) if report.drift else [],
        graphs=[name for name in GRAPH_NAMES if name in report.manifest.graphs],
        innocent=INNOCENT,
        reach=REACH,
    )  # fmt: skip
