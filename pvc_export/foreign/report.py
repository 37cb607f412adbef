"""The report of a graph of any origin: level by level what was compared and found, and the first that is wrong."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from ..parity.drift.report import Drift
from ..parity.levels import TITLES, Rule, Verdict
from ..parity.limits import Row, worst_rows
from ..parity.metrics import Difference
from ..report.text import count, share
from ..terminal.facts import now_utc, this_machine
from .limits import MARGIN, NO_FLOOR_ULPS, RULE, ULPS
from .request import ForeignRequest, StatePair
from .states import Declared, Doubt


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is wrong.

    tensor, step  the output by its ONNX name, and the step, where it shows; None where it is of neither
    run           which run of the level: 'own state', 'time = 1';  axis  whose size was another in it
    what          what happened, with the numbers and their limits
    forced        what feeding the reference's state showed there; empty where that was not asked
    cause         the likely cause
    """

    level: str
    tensor: str | None = None
    step: int | None = None
    run: str = ""
    axis: str | None = None
    what: str
    forced: str = ""
    cause: str

    def line(self) -> str:
        """Where in its level, and what."""
        where = ", ".join([*([] if self.step is None else [f"step {self.step}"]), *([self.run] if self.run else [])])
        return f"{where}: {self.what}" if where else self.what

    @property
    def about(self) -> str:
        return f"level {self.level}, {TITLES[self.level]}"

    @property
    def text(self) -> str:
        """All of it, on one line."""
        said = (f"{self.about}: {self.line()}", self.forced.rstrip("."), f"Likely {self.cause}")
        return ". ".join(filter(None, said))


@dataclass(kw_only=True, slots=True)
class Level:
    """What one level found, as far as it went.

    note          what was done, for people
    rules         what holds bit for bit or not
    left_out      parts that could not be asked, by run, and why
    not_executed  why the whole level was not
    """

    letter: str
    note: str = ""
    compared: list[Difference] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    not_executed: str | None = None

    @property
    def title(self) -> str:
        return TITLES[self.letter]

    @property
    def verdict(self) -> Verdict:
        """The level in one line: how many comparisons there were, the worst of them, and what was done."""
        if self.not_executed is not None:
            return Verdict(level=self.letter, passed=None, detail=self.not_executed)
        said = [count(len(self.findings), "finding")] if self.findings else []
        if self.compared:
            worst = max(self.compared, key=Difference.share)
            run = f" ({worst.where.run})" if worst.where.run else ""
            said.append(f"{len(self.compared)} compared, '{worst.tensor}'{run} at {share(worst.share())} of its limit")
        return Verdict(level=self.letter, passed=not self.findings, detail="; ".join([*said, self.note]))

    def rows(self) -> tuple[Row, ...]:
        """The worst of every output, in the order in which they were compared."""
        return worst_rows(self.compared)

    def to_json(self) -> dict[str, Any]:
        judged = [
            {
                "run": one.where.run,
                "step": one.where.index,
                "shapes": one.shapes,
                "num_different": one.num_different,
                "floor": one.noise or None,
                "limits": one.limits,
                "passed": one.passed,
            }
            for one in self.compared
        ]
        compared = [one.to_json() | more for one, more in zip(self.compared, judged, strict=True)]
        return asdict(self) | {"title": self.title, "passed": self.verdict.passed, "compared": compared}


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignReport:
    """What was compared, how it came out, and when and where: by default just now, on this machine.

    floor_missing  why there is no float64 floor; None if there is
    touched        rows of its table that each such input looked at, where outputs were held against the reference's
    """

    request: ForeignRequest
    declared: Declared
    floor_missing: str | None
    results: list[Level]
    drifts: tuple[Drift, ...]
    touched: dict[str, int] = field(default_factory=dict)
    checked_utc: str = field(default_factory=now_utc)
    machine: str = field(default_factory=this_machine)

    @property
    def graph(self) -> str:
        """The name of its file."""
        return self.request.graph.name

    @property
    def dtype(self) -> str:
        """The narrowest float of the graph, whose roundoff is the unit of every limit."""
        return self.declared.wiring.dtype

    @property
    def sizes(self) -> str:
        """Of the dynamic axes at the first step, in words; empty if all are constant."""
        return ", ".join(f"{name} {size}" for name, size in self.declared.sizes.items())

    @property
    def passed(self) -> bool:
        """Of what was executed, nothing was wrong, and what was declared was enough to show it. A graph that does not
        open is wrong at level A."""
        return not self.faults() and not self.not_shown()

    def not_shown(self) -> dict[str, Doubt]:
        """What a check of this command line cannot show, by name: then it is no pass, though nothing is wrong."""
        return {doubt.about: doubt for doubt in self.declared.doubts}

    def tables(self) -> list[str]:
        """How much of each table was looked at, in words."""
        return [
            f"'{name}' looked at {self.touched.get(name, 0)} of the {table.num_rows} rows of '{table.name}'"
            for name, table in self.declared.tables.items()
        ]

    def faults(self) -> list[Finding]:
        """Everything that is wrong, level by level: any later one may be a consequence of the first."""
        return [finding for level in self.results for finding in level.findings]

    def level(self, letter: str) -> Level:
        return next(level for level in self.results if level.letter == letter)

    def levels(self) -> dict[str, Verdict]:
        """How every level came out."""
        return {level.letter: level.verdict for level in self.results}

    def left_out(self) -> dict[str, str]:
        """What was not run, and why."""
        whole = {f"{x.letter} {x.title}": x.not_executed for x in self.results if x.not_executed is not None}
        return whole | self.parts_left_out()

    def parts_left_out(self) -> dict[str, str]:
        """The same without whole levels."""
        doubts = {name: doubt.text for name, doubt in self.not_shown().items()}
        parts = {f"level {x.letter}, {run}": why for x in self.results for run, why in x.left_out.items()}
        return doubts | parts | ({"float64 floor": self.floor_missing} if self.floor_missing is not None else {})

    def table(self) -> list[str]:
        """Lines for people: what ran, how it was judged, a line for each level, and what was left out."""
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
        for level in self.results:
            lines += [level.verdict.line(), *(f"          {finding.line()}" for finding in level.findings[:3])]
        words = dict.fromkeys(self.not_shown(), "not shown")
        left = self.parts_left_out().items()
        return lines + [f"{name}: {words.get(name, 'not executed')}: {why}" for name, why in left]

    def summary(self) -> str:
        word = "FAIL" if self.faults() else "not shown" if self.not_shown() else "pass"
        return f"{word}: {self.outcome()}"

    def outcome(self) -> str:
        """How much was compared, and how it came out, on one line."""
        shares = [found.share() for level in self.results for found in level.compared]
        asked = [verdict.passed for verdict in self.levels().values() if verdict.passed is not None]
        return (
            f"{sum(asked)} of {len(asked)} levels, {len(shares)} comparisons, the worst at "
            f"{share(max(shares, default=inf))} of its limit, {self.request.steps} steps"
        )

    def failure_text(self) -> str:
        """What is wrong first, how it was seen, and its likely cause, in lines; empty for a pass."""
        faults = self.faults()
        if not faults:
            return ""
        first, by_level = faults[0], [f"{x.letter} ({len(x.findings)})" for x in self.results if x.findings]
        lines = [
            f"the graph differs from the reference: {self.graph} against {self.request.reference} ({self.computed()})",
            f"  {first.about}: {first.line()}",
            *([f"  {first.forced}"] if first.forced else []),
            f"  Likely {first.cause}",
            *([f"  findings by level: {', '.join(by_level)}"] if len(by_level) > 1 else []),
        ]
        return "\n".join(lines)

    @property
    def command(self) -> str:
        """The check as it was made."""
        return self.request.command()

    def next_command(self) -> tuple[str, str]:
        """The check again, narrowed down to what was found first, and what that is for. Empty for a pass."""
        first = next(iter(self.faults()), None)
        if first is None and self.not_shown():
            return self._completed(), "Say what is missing, and check again"
        if first is None:
            return "", ""
        if first.level in "BD":
            return f"{self.request.command((first.step or 0) + 1)} --json", "Read every number up to there"
        if first.axis is not None:
            size = shlex.quote(f"{first.axis}={self.declared.sizes[first.axis]}")
            return f"{self.command} --size {size}", "Check that axis at one size"
        if first.level == "E":
            longer = self.request.command(10 * self.request.steps)
            return longer, "Check a longer stream, at whose end the limit should be left"
        return self.command, "Export the graph anew, then check it again"

    def _completed(self) -> str:
        """The check as it was made, with the options that its doubts ask for: a pair replaces another of its output."""
        doubts = self.not_shown().values()
        states = [*self.request.states, *(doubt.state for doubt in doubts if doubt.state is not None)]
        right = {StatePair.parse(text).output: text for text in states}
        bounds = [f"--bound {doubt.bound}" for doubt in doubts if doubt.bound is not None]
        return " ".join([replace(self.request, states=tuple(right.values())).command(), *bounds])

    def computed(self) -> str:
        """The dtype of the graph, and what ONNX Runtime's CPU computes it in."""
        return self.dtype if self.dtype in ("float32", "float64") else f"{self.dtype}, computed in float32"

    def rule(self) -> str:
        """How the limits are made, in words."""
        if given := self.request.parsed_tolerances():
            said = ", ".join(f"{metric.replace('_', ' ')} {limit:g}" for metric, limit in given.items())
            return f"{said}, as --tolerance says in place of the rule"
        if self.floor_missing is not None:
            return f"{NO_FLOOR_ULPS:g} roundings of {self.dtype}, since there is no float64 floor: {self.floor_missing}"
        scale = "" if self.dtype == "float32" else f", scaled to {self.dtype}"
        return f"{MARGIN:g} x (the reference in float32 - in float64) + {ULPS:g} roundings{scale}"

    def quantized(self) -> str:
        """What to know of a graph with quantized operators, in words; empty for others and where it is known."""
        operators = self.declared.wiring.quantized
        if not operators or self.request.tolerances:
            return ""
        return f"quantized ({', '.join(operators)}): the rule is float's. Say what is enough: --tolerance rel_l2=LIMIT"

    def to_json(self) -> dict[str, Any]:
        """Every level with its findings and every single comparison, for curves."""
        faults = self.faults()
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
            "first": asdict(faults[0]) if faults else None,
            "not_shown": {name: doubt.text for name, doubt in self.not_shown().items()},
            "tables": {
                name: {"table": table.name, "rows": table.num_rows, "touched": self.touched.get(name, 0)}
                for name, table in self.declared.tables.items()
            },
            "levels": [level.to_json() for level in self.results],
            "drift": [drift.to_json() for drift in self.drifts],
        }
