"""What the levels of a check of any graph found: evidence as of any check, and faults with their causes."""

from __future__ import annotations

from dataclasses import dataclass

from ..parity.drift.report import Drift
from ..parity.evidence import Evidence
from ..parity.fault import Fault
from ..parity.levels import Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings(Evidence):
    """Everything that one level, or several together, found.

    diagnosed  what is wrong, each with its likely cause: that is tried while the arrays are at hand
    drifts     of every output of the stream
    """

    diagnosed: tuple[Fault, ...] = ()
    drifts: tuple[Drift, ...] = ()


def of_rules(*rules: Rule, cause: str) -> Findings:
    """Rules, and a fault of each that does not hold."""
    wrong = [
        Fault(kind="rule", part=rule.name, about=rule.name, what=rule.detail, level=rule.level, cause=cause)
        for rule in rules
        if rule.passed is False
    ]
    return Findings(rules=rules, diagnosed=tuple(wrong))
