"""Findings of a graph check: the evidence that every check collects, and faults with their causes."""

from __future__ import annotations

from dataclasses import dataclass

from ..parity.drift.report import Drift
from ..parity.evidence import Evidence
from ..parity.fault import Fault
from ..parity.levels import Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings(Evidence):
    """Everything found by one level, or by several together.

    diagnosed  the faults, each with its likely cause, which is determined while the arrays are in memory
    drifts     the drift of every output of the stream
    """

    diagnosed: tuple[Fault, ...] = ()
    drifts: tuple[Drift, ...] = ()


def of_rules(*rules: Rule, cause: str) -> Findings:
    """The rules, and a fault for each that is broken."""
    wrong = [
        Fault(kind="rule", part=rule.name, about=rule.name, what=rule.detail, level=rule.level, cause=cause)
        for rule in rules
        if rule.passed is False
    ]
    return Findings(rules=rules, diagnosed=tuple(wrong))
