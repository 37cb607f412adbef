"""The report as JUnit XML: a suite for each stage and level, a case for each row, rule, kind of prompt and rung.

Anything that was not executed is a skipped case with its reason, so that CI does not count it as a pass. Rows have no
individual times; where the schema requires one, it is 0.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..parity.fault import Fault, FaultKind
from ..parity.levels import Rule, Verdict, heading
from ..parity.limits import Row, kl_limit
from .given import ReportInput
from .text import clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One test case. failure: what is wrong, or None; skipped: why it was not executed, or None."""

    suite: str
    group: str
    name: str
    failure: str | None = None
    skipped: str | None = None
    details: str = ""


def junit(report: ReportInput) -> str:
    """The XML document, with its declaration."""
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
    """Group cases into suites, each with the facts as properties."""
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
    case = Cases(parity.faults())
    for row in parity.rows:
        yield case.of_row(row, row.name, str(row.rung), row.graph, f"{row.graph}/{row.tensor}")
    for graph in report.manifest.graphs:
        names = "\n".join(f"{name}: {why}" for name, why in parity.wrong_weights.get(graph, {}).items())
        yield case("weights", graph, "weights", graph, f"{graph}: every weight in place, bit for bit", names)
    yield case("missing", "", "outputs", "all", "every output was compared")
    yield case("stopped", "", "stream", "all", "the stream ran to its end")
    yield case("token", "", "tokens", "greedy", f"{parity.num_tokens} tokens are the likeliest")
    limit = kl_limit(parity.rounding)
    for kind in dict.fromkeys(c.kind for c in parity.conversations):
        group = [c for c in parity.conversations if c.kind == kind]
        equal = f"{sum(c.equal for c in group)}/{len(group)} answers equal"
        details = f"{equal}, scaled KL at most {max(c.scaled_kl for c in group):.3g} (limit {limit:.3g})"
        yield case("conversation", kind, "conversations", "kind", kind, details)
    for rung in parity.answers:
        yield case("answer", str(rung.rung), "held-out answers", "rung", str(rung.rung), rung.line().strip())
    for curve in parity.drift.curves if parity.drift else ():
        yield case("drift", curve.tensor, "level E", "drift", curve.tensor, curve.line().strip())
    yield from verdict_cases(parity.rules, parity.levels(), parity.not_executed)


class Cases:
    """Maker of cases, each of which fails if its part has a fault."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._wrong: dict[tuple[FaultKind, str], list[str]] = {}
        for fault in faults:
            self._wrong.setdefault((fault.kind, fault.part), []).append(fault.text)

    def __call__(self, kind: FaultKind, part: str, suite: str, group: str, name: str, details: str = "") -> Case:
        """A case that fails if there is a fault of that kind and part."""
        found = self._wrong.get((kind, part), [])
        return Case(suite=suite, group=group, name=name, failure="\n".join(found) or None, details=details)

    def of_row(self, row: Row, part: str, suite: str, group: str, name: str) -> Case:
        details = f"{row.worst.numbers()} at {row.worst.where}, {row.share():.3g} of the limit"
        return self("row", part, suite, group, f"{name} ({row.num_compared} compared)", details)


def verdict_cases(
    rules: Iterable[Rule], levels: Mapping[str, Verdict], not_executed: Mapping[str, str]
) -> Iterator[Case]:
    """A case for every rule and level, and for everything that was not executed."""
    for rule in rules:
        yield _verdict(f"level {rule.level}", "rules", rule.name, rule)
    for level, verdict in levels.items():
        yield _verdict("levels", "level", heading(level), verdict)
    for name, reason in not_executed.items():
        yield Case(suite="not executed", group="ladder", name=name, skipped=reason)


def _verdict(suite: str, group: str, name: str, found: Verdict | Rule) -> Case:
    failure, skipped = (found.detail if found.passed is state else None for state in (False, None))
    details = found.detail if found.passed else ""
    return Case(suite=suite, group=group, name=name, failure=failure, skipped=skipped, details=details)
