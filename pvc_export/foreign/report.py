"""The report of a graph of any origin: level by level what was compared and found, and the first that is wrong."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from ..parity.drift.report import Drift
from ..parity.levels import TITLES, Verdict
from ..report.text import count, share
from .limits import CEILING, FLOAT32_UNIT, MARGIN, NO_FLOOR_ULPS, ULPS, Compared

LEVELS = "ABCDEGHI"
"""Those of every ladder of this product that a graph of another model can be asked; F is of bundles."""
NUM_STEPS = 64
"""Of the stream, where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is not as it should be.

    tensor, step  the output by its ONNX name, and the step, where it shows; None where it is of neither
    run           which run of the level: 'own state', 'time = 1'
    text          what happened, with the numbers and their limits
    forced        what feeding the reference's state showed there; empty where that was not asked
    likely        the likely cause
    """

    level: str
    tensor: str | None = None
    step: int | None = None
    run: str = ""
    text: str
    forced: str = ""
    likely: str

    def line(self) -> str:
        """Where and what."""
        where = ", ".join([*([] if self.step is None else [f"step {self.step}"]), *([self.run] if self.run else [])])
        return f"{where}: {self.text}" if where else self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """How one level came out. It is a pass only if it was executed.

    note          what was done, for people
    left_out      parts that could not be asked, by run, and why
    not_executed  why the whole level was not
    """

    letter: str
    note: str = ""
    compared: tuple[Compared, ...] = ()
    findings: tuple[Finding, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    not_executed: str | None = None

    @property
    def passed(self) -> bool:
        return not self.findings and self.not_executed is None

    @property
    def verdict(self) -> Verdict:
        """The level in one line: how many comparisons there were, the worst of them, and what was done."""
        if self.not_executed is not None:
            return Verdict(level=self.letter, passed=None, detail=self.not_executed)
        detail = self.note
        if self.compared:
            worst = max(self.compared, key=Compared.share)
            run = f" ({worst.run})" if worst.run else ""
            much = f"'{worst.tensor}'{run} at {share(worst.share())} of its limit"
            detail = f"{len(self.compared)} compared, the worst {much}; {self.note}"
        if self.findings:
            detail = f"{count(len(self.findings), 'finding')}; {detail}"
        return Verdict(level=self.letter, passed=not self.findings, detail=detail)

    def to_json(self) -> dict[str, Any]:
        return {
            "letter": self.letter,
            "title": TITLES[self.letter],
            "passed": self.passed,
            "note": self.note,
            "findings": [asdict(finding) for finding in self.findings],
            "left_out": dict(self.left_out),
            "not_executed": self.not_executed,
            "compared": [found.to_json() for found in self.compared],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignReport:
    """What was compared, and how it came out.

    command        the check itself, as a command line
    dtype          the narrowest float of the graph, whose roundoff is the unit of every limit
    floor_missing  why there is no float64 floor; None if there is
    """

    graph: str
    reference: str
    command: str
    dtype: str
    num_steps: int
    floor_missing: str | None
    states: tuple[str, ...]
    drawn: tuple[str, ...]
    sizes: dict[str, int]
    levels: tuple[Level, ...]
    drifts: tuple[Drift, ...]

    @property
    def passed(self) -> bool:
        """No finding, and the steps themselves were compared."""
        return not any(level.findings for level in self.levels) and self.level("D").passed

    @property
    def findings(self) -> list[Finding]:
        return [finding for level in self.levels for finding in level.findings]

    @property
    def first(self) -> Finding | None:
        """The first finding of the first level that has one: any later one may be its consequence."""
        return next(iter(self.findings), None)

    def level(self, letter: str) -> Level:
        return next(level for level in self.levels if level.letter == letter)

    def left_out(self) -> dict[str, str]:
        """What was not run, and why."""
        whole = {f"{x.letter} {TITLES[x.letter]}": x.not_executed for x in self.levels if x.not_executed is not None}
        parts = {f"{x.letter}, {run}": why for x in self.levels for run, why in x.left_out.items()}
        return whole | parts | ({"float64 floor": self.floor_missing} if self.floor_missing is not None else {})

    def table(self) -> list[str]:
        """Lines for people: what ran, how it was judged, a line for each level, and what was left out."""
        lines = [
            f"{self.graph} ({self.computed()}), against {self.reference} in torch float32",
            *(f"  state  {text}" for text in self.states),
            *(f"  drawn  {text}" for text in self.drawn),
            *([f"  sizes  {', '.join(f'{name} {size}' for name, size in self.sizes.items())}"] if self.sizes else []),
            f"  limit  {self.rule()}",
            "levels",
        ]
        for level in self.levels:
            lines.append(level.verdict.line())
            lines += [f"          {finding.line()}" for finding in level.findings[:3]]
        return lines + [f"{name}: not executed: {reason}" for name, reason in self.left_out().items()]

    def summary(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}: {self.outcome()}"

    def outcome(self) -> str:
        """How much was compared, and how it came out, on one line."""
        shares = [found.share() for level in self.levels for found in level.compared]
        asked = [level for level in self.levels if level.not_executed is None]
        return (
            f"{sum(level.passed for level in asked)} of {len(asked)} levels, {len(shares)} comparisons, the worst at "
            f"{share(max(shares, default=inf))} of its limit, {self.num_steps} steps"
        )

    def failure_text(self) -> str:
        """What is wrong first, how it was seen, its likely cause, and the next command. Empty if all passed."""
        first = self.first
        if first is None:
            return ""
        lines = [f"the graph differs from the reference: {self.graph} against {self.reference} ({self.computed()})"]
        lines.append(f"  level {first.level}, {TITLES[first.level]}: {first.line()}")
        lines += [f"  {first.forced}"] if first.forced else []
        lines.append(f"  Likely {first.likely}")
        others = [f"{level.letter} ({len(level.findings)})" for level in self.levels if level.findings]
        lines += [f"  findings by level: {', '.join(others)}"] if len(others) > 1 else []
        return "\n".join([*lines, f"next: {self.next_command(first)}"])

    def whole_command(self) -> str:
        """The check as it was made."""
        return self.command if self.num_steps == NUM_STEPS else f"{self.command} --steps {self.num_steps}"

    def next_command(self, first: Finding) -> str:
        """The check again, narrowed down to what was found."""
        if first.level == "B":
            return f"{self.command} --steps 1 --json  # every number"
        if first.level == "C":
            symbol = first.run.partition(" = ")[0]
            return f"{self.command} --size {shlex.quote(f'{symbol}={self.sizes[symbol]}')}  # that axis at one size"
        if first.level == "D":
            return f"{self.command} --steps {(first.step or 0) + 1} --json  # every number up to there"
        if first.level == "E":
            return f"{self.command} --steps {10 * self.num_steps}  # at whose end the limit should be left"
        return f"{self.command}  # once the graph is exported anew"

    def computed(self) -> str:
        """The dtype of the graph, and what ONNX Runtime's CPU computes it in."""
        return self.dtype if self.dtype in ("float32", "float64") else f"{self.dtype}, computed in float32"

    def rule(self) -> str:
        """How the limits are made, in words."""
        if self.floor_missing is not None:
            return f"{NO_FLOOR_ULPS:g} roundings of {self.dtype}, since there is no float64 floor: {self.floor_missing}"
        scale = "" if self.dtype == "float32" else f", scaled to {self.dtype}"
        return f"{MARGIN:g} x (the reference in float32 - in float64) + {ULPS:g} roundings{scale}"

    def to_json(self) -> dict[str, Any]:
        """Every level with its findings and every single comparison, for curves."""
        first = self.first
        return {
            "passed": self.passed,
            "graph": self.graph,
            "reference": self.reference,
            "dtype": self.dtype,
            "computed_in": "float32",
            "num_steps": self.num_steps,
            "states": list(self.states),
            "sizes": self.sizes,
            "rule": {
                "margin": MARGIN,
                "ulps": ULPS,
                "no_floor_ulps": NO_FLOOR_ULPS,
                "ceiling": CEILING,
                "float32_unit": FLOAT32_UNIT,
                "floor_missing": self.floor_missing,
            },
            "first": None if first is None else asdict(first),
            "levels": [level.to_json() for level in self.levels],
            "drift": [drift.to_json() for drift in self.drifts],
        }
