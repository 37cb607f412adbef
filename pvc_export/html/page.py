"""The report as one HTML file: nothing is fetched, and it can be read without scripts, in print and on a phone.

Unusual: models and users wrote some of what it shows. Every text is escaped by the template engine, and control
characters are spelled out (text.py).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engines.spec import GRAPH_NAMES

from ..console import size_text
from ..culprit import INNOCENT
from ..levels import IN_A_CHECK, TITLES
from ..parity import kl_limit
from . import figures, text
from .given import ReportInput, next_command
from .sections import drift_rows, ladder, measured_how, panels, topics

TEMPLATE = "report.html.j2"
REACH = {"error": (1e-1, 1e4), "range": (1e-6, 1e2)}
"""Shares of a limit between which the culprit's bars run: its error, and its values in its dtype."""


def render(report: ReportInput) -> str:
    """The whole page."""
    command, purpose = next_command(report)
    return _environment().get_template(TEMPLATE).render(
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
        drift=drift_rows(report.drift) if report.drift else [],
        graphs=[name for name in GRAPH_NAMES if name in report.manifest.graphs],
        innocent=INNOCENT,
        reach=REACH,
    )  # fmt: skip


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": text.number, "plain": text.plain, "share": text.share, "when": text.when}
    environment.filters["size"] = size_text
    environment.globals |= {"bar": figures.bar, "heat_figure": figures.heat_figure, "count": text.count}
    return environment


def _finalize(value: Any) -> Any:
    """What is written into the page: text without control characters."""
    return text.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
