"""Report on a graph of any origin: the comparisons, the faults with their causes, and the next command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from ..parity.fault import Fault
from ..parity.levels import TITLES, Verdict, heading, level_of, together, verdicts_of, verdicts_of_rules
from ..parity.limits import Row, worst_rows
from ..parity.metrics import Difference
from ..report.text import count
from ..terminal.facts import now_utc, this_machine
from ..terminal.numbers import share
from .findings import Findings
from .limits import FAITHFUL, MARGIN, NO_FLOOR_ULPS, RULE, ULPS
from .request import ForeignRequest, StatePair
from .states import Declared, Doubt

LEVELS = "ABCDEGHI"
"""The levels of a bundle's check that work for any graph. The others need a ring, a tokenizer or pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignReport(Findings):
    """The comparisons and their results, with time and machine: by default now, and this one.

    floor_missing  why there is no float64 noise floor; None if there is one
    touched        input -> number of rows of its table that it read in steps whose outputs were compared
    """

    request: ForeignRequest
    declared: Declared
    floor_missing: str | None
    touched: dict[str, int] = field(default_factory=dict)
    checked_utc: str = field(default_factory=now_utc)
    machine: str = field(default_factory=this_machine)

    @property
    def graph(self) -> str:
        """Name of the graph's file."""
        return self.request.graph.name

    @property
    def dtype(self) -> str:
        """Narrowest float of the graph; its roundoff is the unit of every limit."""
        return self.declared.wiring.dtype

    @property
    def sizes(self) -> str:
        """Sizes of the dynamic axes at the first step, as text; empty if all are constant."""
        return ", ".join(f"{name} {size}" for name, size in self.declared.sizes.items())

    @property
    def passed(self) -> bool:
        """Whether everything that ran was right, and the declarations were enough to show it. A graph that does not
        open fails level A."""
        return not self.faults() and not self.not_shown()

    def not_shown(self) -> dict[str, Doubt]:
        """What this command line cannot show, by name. If anything, the check does not pass, even without faults."""
        return {doubt.about: doubt for doubt in self.declared.doubts}

    def tables(self) -> list[str]:
        """Coverage of each table, as text."""
        return [
            f"'{name}' read {self.touched.get(name, 0)} of the {table.num_rows} rows of '{table.name}'"
            for name, table in self.declared.tables.items()
        ]

    def faults(self) -> list[Fault]:
        """All faults, level by level. Each may be a consequence of the first."""
        return sorted(self.diagnosed, key=lambda fault: fault.level)

    def compared(self, level: str) -> list[Difference]:
        """Comparisons made at a level."""
        return [one for one in self.differences if level_of(one.where) == level]

    def rows(self) -> dict[str, tuple[Row, ...]]:
        """Level -> the worst comparison of every output, in the order they were compared."""
        found = {level: worst_rows(self.compared(level)) for level in LEVELS}
        return {level: rows for level, rows in found.items() if rows}

    def levels(self) -> dict[str, Verdict]:
        """Verdict of every level."""
        why_not = {level: self.not_executed.get(heading(level), "no part of it could be checked") for level in LEVELS}
        return together(self._verdicts(), why_not)

    def _verdicts(self) -> Iterator[Verdict]:
        """One verdict per level and kind of evidence; the faults have the details."""
        for level, number in Counter(fault.level for fault in self.diagnosed).items():
            yield Verdict(level=level, passed=False, detail=count(number, "fault"))
        yield from verdicts_of(self.differences).values()
        yield from verdicts_of_rules(self.rules)
        if self.drifts:
            steps = count(self.request.steps, "step")
            num_open = sum(drift.doubt(FAITHFUL * drift.noise) is not None for drift in self.drifts)
            undecided = f", too few to decide {num_open} of them" if num_open else ""
            yield Verdict(level="E", passed=True, detail=f"{count(len(self.drifts), 'output')} over {steps}{undecided}")

    def left_out(self) -> dict[str, str]:
        """Everything that was not run or not shown -> why."""
        return self.not_executed | self.parts_left_out()

    def parts_left_out(self) -> dict[str, str]:
        """The same as `left_out`, without whole levels."""
        rules = {f"level {rule.level}, {rule.name}": rule.detail for rule in self.rules if rule.passed is None}
        return rules | self.unshown()

    def unshown(self) -> dict[str, str]:
        """Omissions that belong to no level or rule: doubts, and a missing noise floor."""
        doubts = {name: doubt.text for name, doubt in self.not_shown().items()}
        return doubts | ({"float64 floor": self.floor_missing} if self.floor_missing is not None else {})

    def table(self) -> list[str]:
        """The report as lines of text: what ran, the limits, one line per level, and what was left out."""
        lines = [
            f"{self.graph} ({self.computed()}), against {self.request.reference} in torch float32",
            *(f"  state  {pair.text}" for pair in self.declared.states),
            *(f"  drawn  {text}" for text in self.declared.drawn_text),
            *(f"  table  {text}" for text in self.tables()),
            *([f"  sizes  {self.sizes}"] if self.sizes else []),
            f"  limit  {self.rule()}",
            *([f"  note   {self.quantized()}"] if self.quantized() else []),
            "levels",
        ]
        for level, verdict in self.levels().items():
            wrong = [fault.line for fault in self.diagnosed if fault.level == level]
            lines += [verdict.line(), *(f"          {line}" for line in wrong[:3])]
        words = dict.fromkeys(self.not_shown(), "not shown")
        left = self.parts_left_out().items()
        return lines + [f"{name}: {words.get(name, 'not executed')}: {why}" for name, why in left]

    def summary(self) -> str:
        word = "FAIL" if self.faults() else "not shown" if self.not_shown() else "pass"
        return f"{word}: {self.outcome()}"

    def outcome(self) -> str:
        """Number of comparisons and the result, on one line."""
        shares = [found.share() for found in self.differences]
        asked = [verdict.passed for verdict in self.levels().values() if verdict.passed is not None]
        return (
            f"{sum(asked)} of {len(asked)} levels, {len(shares)} comparisons, the worst at "
            f"{share(max(shares, default=inf))} of its limit, {self.request.steps} steps"
        )

    def failure_text(self) -> str:
        """The first fault, how it showed, and its likely cause, as lines; empty for a pass."""
        faults = self.faults()
        if not faults:
            return ""
        first, found = faults[0], Counter(fault.level for fault in faults)
        lines = [
            f"the graph differs from the reference: {self.graph} against {self.request.reference} ({self.computed()})",
            f"  level {heading(first.level, ', ')}: {first.line}",
            *([f"  {first.shown}"] if first.shown else []),
            f"  Likely cause: {first.cause}",
            *([f"  faults by level: {', '.join(f'{x} ({n})' for x, n in found.items())}"] if len(found) > 1 else []),
        ]
        return "\n".join(lines)

    @property
    def command(self) -> str:
        """The command of this check."""
        return self.request.command()

    def next_command(self) -> tuple[str, str]:
        """The next command, narrowed down to the first fault, and its purpose. Both are empty for a pass."""
        first = next(iter(self.faults()), None)
        if first is None and self.not_shown():
            return self._completed(), "Add what is missing, and check again"
        if first is None:
            return "", ""
        if first.level in "BD":
            step = first.where.index if first.where is not None else 0
            return f"{self.request.command(step + 1)} --json", "Print every number up to that step"
        if first.narrow:
            return f"{self.command} {first.narrow}", "Check that axis at one size"
        if first.level == "E":
            longer = self.request.command(10 * self.request.steps)
            return longer, "Check a longer stream, which should exceed the limit by its end"
        return self.command, "Export the graph again, then repeat the check"

    def _completed(self) -> str:
        """This check's command with the options that its doubts name. A new pair replaces one with the same output."""
        doubts = self.not_shown().values()
        states = [*self.request.states, *(doubt.state for doubt in doubts if doubt.state is not None)]
        right = {StatePair.parse(text).output: text for text in states}
        bounds = [f"--bound {doubt.bound}" for doubt in doubts if doubt.bound is not None]
        return " ".join([replace(self.request, states=tuple(right.values())).command(), *bounds])

    def computed(self) -> str:
        """The graph's dtype, and the dtype in which ONNX Runtime's CPU computes it."""
        return self.dtype if self.dtype in ("float32", "float64") else f"{self.dtype}, computed in float32"

    def rule(self) -> str:
        """The rule for the limits, as text."""
        if given := self.request.parsed_tolerances():
            said = ", ".join(f"{metric.replace('_', ' ')} {limit:g}" for metric, limit in given.items())
            return f"{said}, given by --tolerance instead of the rule"
        if self.floor_missing is not None:
            return f"{NO_FLOOR_ULPS:g} roundings of {self.dtype}, since there is no float64 floor: {self.floor_missing}"
        scale = "" if self.dtype == "float32" else f", scaled to {self.dtype}"
        return f"{MARGIN:g} x (the reference in float32 - in float64) + {ULPS:g} roundings{scale}"

    def quantized(self) -> str:
        """Note on quantized operators; empty if there are none, or if a tolerance is given."""
        operators = self.declared.wiring.quantized
        if not operators or self.request.tolerances:
            return ""
        return f"quantized ({', '.join(operators)}), but the rule is for floats. Set a limit: --tolerance rel_l2=LIMIT"

    def to_json(self) -> dict[str, Any]:
        """Every fault, rule, row and single comparison, under the names of a bundle's report."""
        return {
            "passed": self.passed,
            "graph": self.graph,
            "reference": self.request.reference,
            "dtype": self.dtype,
            "num_steps": self.request.steps,
            "states": [pair.text for pair in self.declared.states],
            "sizes": self.declared.sizes,
            "computed_in": "float32",
            "rule": RULE | {"floor_missing": self.floor_missing, "tolerance": self.request.parsed_tolerances()},
            "faults": [fault.to_json() for fault in self.faults()],
            "not_shown": {name: doubt.text for name, doubt in self.not_shown().items()},
            "not_executed": self.not_executed,
            "tables": {
                name: {"table": table.name, "rows": table.num_rows, "touched": self.touched.get(name, 0)}
                for name, table in self.declared.tables.items()
            },
            "levels": [asdict(verdict) | {"title": TITLES[level]} for level, verdict in self.levels().items()],
            "rules": [rule.to_json() for rule in self.rules],
            "rows": [{"level": level} | row.to_json() for level, rows in self.rows().items() for row in rows],
            "frames": [
                one.to_json() | {"level": level_of(one.where), "noise": one.noise, "limits": one.limits}
                for one in self.differences
            ],
            "drift": [drift.to_json() for drift in self.drifts],
        }
