"""The report as one HTML file: it fetches nothing, and is readable without scripts, in print and on a phone.

Some of its text comes from models and users. The template engine escapes every text, and control characters are
spelled out (text.py).
"""

from __future__ import annotations

from engines.spec import GRAPH_NAMES

from ..parity.levels import TITLES
from ..parity.limits import kl_limit, thresholds
from .given import ReportInput
from .sections import panels
from .template import fill

TEMPLATE, PAGE_NAME = "report.html.j2", "report.html"
METRICS = {
    "rel_l2": "relative L2", "worst_token": "worst token", "worst_value": "worst value", "cosine_gap": "1 − cosine",
    "norm_gap": "norm",
}  # fmt: skip
REACH = {"error": (1e-1, 1e4), "range": (1e-6, 1e2)}
"""Lower and upper end of the culprit's bars, as fractions: of its error limit, and of its dtype's largest value."""


def render(report: ReportInput) -> str:
    """Render the whole page."""
    parity, manifest = report.parity, report.manifest
    return fill(
        TEMPLATE,
        report=report,
        parity=parity,
        manifest=manifest,
        titles=TITLES,
        metrics=METRICS,
        measured=thresholds()["measured"],
        panels=panels(parity),
        kl_limit=kl_limit(parity.rounding),
        topics=sorted({topic for rung in parity.answers for topic in rung.count}),
        drift=parity.drift.curves if parity.drift else [],
        drift_summary=parity.drift.summary() if parity.drift else "",
        versions=manifest.versions,
        files=manifest.files,
        graphs=[name for name in GRAPH_NAMES if name in manifest.graphs],
        cause=None if parity.passed else parity.cause(),
        reach=REACH,
    )
