"""The report as JUnit XML: a suite for each stage and level, a case for each row, rule, kind of prompt and rung.

What was not executed is skipped, with its reason: no CI may count it as a pass. A row has no time of its own, and
schemas that ask for one get 0.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..parity.levels import TITLES
from ..parity.metrics import GATED, Row, kl_limit
from .given import ReportInput
from .text import clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One test case. failure, skipped: what is wrong, and why it was not executed; None otherwise."""

    suite: str
    group: str
    name: str
    failure: str | None = None
    skipped: str | None = None
    details: str = ""


def junit(report: ReportInput) -> str:
    """The document, with its XML declaration."""
    manifest = report.manifest
    facts = {
        "model": manifest.model.name,
        "precision": manifest.precision,
        "target": manifest.target,
        "computed_in": report.parity.computed_in,
        "machine": report.machine,
        "islands": " ".join(manifest.islands),
        "command": report.command,
    }
    return document(f"parity of {report.bundle}", _cases(report), facts, checked_utc=report.checked_utc)


def document(name: str, cases: Iterable[Case], facts: Mapping[str, str], *, checked_utc: str) -> str:
    """Cases in their suites, each of which has the facts as properties."""
    suites: dict[str, list[Case]] = {}
    for case in cases:
        suites.setdefault(case.suite, []).append(case)
    everything = [case for members in suites.values() for case in members]
    root = ET.Element("testsuites", {"name": clean(name), **_counts(everything)})
    for suite_name, members in suites.items():
        attributes = {"name": clean(suite_name), "timestamp": clean(checked_utc), "hostname": "localhost"}
        suite = ET.SubElement(root, "testsuite", attributes | _counts(members))
        properties = ET.SubElement(suite, "properties")
        for key, value in facts.items():
            ET.SubElement(properties, "property", {"name": key, "value": clean(value)})
        for case in members:
            _add_case(suite, case)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(cases: list[Case]) -> dict[str, str]:
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.failure is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.skipped is not None for case in cases)),
        "time": "0",
    }


def _add_case(suite: ET.Element, case: Case) -> None:
    classname = clean(f"parity.{case.suite}.{case.group}".replace(" ", "_"))
    element = ET.SubElement(suite, "testcase", {"classname": classname, "name": clean(case.name), "time": "0"})
    if case.failure is not None:
        attributes = {"message": clean(case.failure.splitlines()[0]), "type": "ParityError"}
        ET.SubElement(element, "failure", attributes).text = clean(case.failure)
    elif case.skipped is not None:
        ET.SubElement(element, "skipped", {"message": clean(f"not executed: {case.skipped}")})
    if case.details:
        ET.SubElement(element, "system-out").text = clean(case.details)


def _cases(report: ReportInput) -> Iterator[Case]:
    parity = report.parity
    for row in parity.rows:
        yield _row(row)
    for graph in report.manifest.graphs:
        wrong = parity.wrong_weights.get(graph)
        failure = f"not the reference's weights: {', '.join(wrong)}" if wrong else None
        yield Case(suite="weights", group=graph, name=f"{graph}: every weight bit for bit", failure=failure)
    missing = f"never seen, so never compared: {', '.join(parity.missing)}" if parity.missing else None
    yield Case(suite="outputs", group="all", name="every output was compared", failure=missing)
    yield Case(
        suite="tokens", group="greedy", name=f"{parity.num_tokens} tokens are the likeliest",
        failure="\n".join(parity.wrong_tokens) or None,
    )  # fmt: skip
    yield from _conversations(report)
    for rung in parity.answers:
        yield Case(
            suite="held-out answers", group="rung", name=rung.rung, failure="\n".join(rung.faults()) or None,
            details=rung.line().strip(),
        )  # fmt: skip
    yield from _of_levels(report)
    for name, reason in parity.not_executed.items():
        yield Case(suite="not executed", group="ladder", name=name, skipped=reason)


def _row(row: Row) -> Case:
    numbers = [f"{metric} {getattr(row.worst, metric):.3g} (limit {row.limits[metric]:.3g})" for metric in GATED]
    text = f"{', '.join(numbers)} at {row.worst.where}, {row.share():.3g} of the limit"
    return Case(
        suite=row.stage,
        group=row.graph,
        name=f"{row.graph}/{row.tensor} ({row.num_compared} compared)",
        failure=None if row.passed else f"{row.text()}\n{text}",
        details=text,
    )


def _conversations(report: ReportInput) -> Iterator[Case]:
    limit, said = kl_limit(report.parity.precision), report.parity.conversations
    for kind in dict.fromkeys(c.kind for c in said):
        group = [c for c in said if c.kind == kind]
        faults = [f"{c.question!r}: {fault}" for c in group if (fault := c.fault(limit))]
        equal = f"{sum(c.equal for c in group)}/{len(group)} answers equal"
        yield Case(
            suite="conversations", group="kind", name=kind, failure="\n".join(faults) or None,
            details=f"{equal}, scaled KL at most {max(c.scaled_kl for c in group):.3g} (limit {limit:.3g})",
        )  # fmt: skip


def _of_levels(report: ReportInput) -> Iterator[Case]:
    """Rules and drift, one by one, and how every level came out."""
    for rule in report.parity.rules:
        yield Case(
            suite=f"level {rule.level}",
            group="rules",
            name=rule.name,
            failure=rule.detail if rule.passed is False else None,
            skipped=rule.detail if rule.passed is None else None,
            details=rule.detail if rule.passed else "",
        )
    if report.drift is not None:
        for curve in report.drift.curves:
            failure = None if curve.verdict == "ok" else curve.verdict
            yield Case(suite="level E", group="drift", name=curve.tensor, failure=failure, details=curve.line().strip())
    for letter, verdict in report.levels().items():
        yield Case(
            suite="levels",
            group="level",
            name=f"{letter} {TITLES[letter]}",
            failure=verdict.detail if verdict.passed is False else None,
            skipped=verdict.detail if verdict.passed is None else None,
            details=verdict.detail if verdict.passed else "",
        )
