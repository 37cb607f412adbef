"""The request for a graph check, as given on the command line: state pairs, axis sizes, input bounds."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np

from engines.errors import SpecError
from engines.memory import Array

from .draw import Bound

NUM_STEPS = 64
"""Default length of the stream (--steps)."""

STATE = re.compile(
    r"(?P<input>[^=]+)=(?P<output>.+?)(@append:(?P<axis>-?\d+))?(@start:(?P<start>\d+))?(?P<crossed>@crossed)?"
)
SIZE = re.compile(r"(?P<axis>.+?)=(?P<size>[^=]+)")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
TOLERANCE = re.compile(rf"(?P<metric>\w+)=(?P<limit>{NUMBER})")
TOLERATED = ("rel_l2", "worst_token", "max_abs")
"""Metrics that --tolerance can give a limit."""
BOUND = re.compile(rf"(?P<input>.+)=(?P<low>{NUMBER}):(?P<high>{NUMBER})")


def _read(option: str, text: str, pattern: re.Pattern[str], form: str, example: str) -> re.Match[str]:
    """Match an option's value. Raises SpecError for text of another form, and for an invalid bound or tolerance."""
    match = pattern.fullmatch(text)
    if pattern is TOLERANCE and match and not (match["metric"] in TOLERATED and 0 < float(match["limit"]) < inf):
        match = None
    if match is None or (pattern is BOUND and not -inf < float(match["low"]) <= float(match["high"]) < inf):
        raise SpecError(f"{option} {text} is not valid", expected=form, fix=f"write it as in {example}")
    return match


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePair:
    """An output that becomes an input of the next step.

    append_axis  axis along which the output's rows, all new, are appended to the input; None: it replaces the input
    start        rows of zeros that a growing axis begins with
    crossed      the names suggest other pairs, but this pair is intended
    Input and output may be patterns in which `*` stands for any text, the same in both (names.py finds the matches).
    """

    input: str
    output: str
    append_axis: int | None = None
    start: int = 0
    crossed: bool = False

    @staticmethod
    def parse(text: str) -> StatePair:
        """'past=present', 'past=new@append:1', and either with '@start:N'. Raises SpecError for anything else."""
        form = "INPUT=OUTPUT; then @append:AXIS if the output is new rows only; then @start:N if it cannot begin empty"
        match = _read("--state", text, STATE, form, "--state past=present, or --state past=new@append:1")
        if match["input"].count("*") != match["output"].count("*") or match["input"].count("*") > 1:
            raise SpecError(
                f"--state {text} has the wrong number of '*'",
                expected="one '*' on each side, which stands for the same text, or none",
                fix="write it as in --state 'cached_*=new_cached_*'",
            )
        return StatePair(
            input=match["input"],
            output=match["output"],
            append_axis=None if match["axis"] is None else int(match["axis"]),
            start=int(match["start"] or 0),
            crossed=match["crossed"] is not None,
        )

    @property
    def is_pattern(self) -> bool:
        return "*" in self.input

    def fitted(self, name: str) -> StatePair | None:
        """The pair that this pattern yields for an input's name; None if the name does not match."""
        head, _, tail = self.input.partition("*")
        if len(name) < len(head) + len(tail) or not (name.startswith(head) and name.endswith(tail)):
            return None
        return replace(self, input=name, output=self.output.replace("*", name[len(head) : len(name) - len(tail)]))

    def next(self, state: Array, output: Array) -> Array:
        """The state of the next step. Raises ValueError if rows cannot be appended."""
        return output if self.append_axis is None else np.concatenate([state, output], axis=self.append_axis)

    def option(self) -> str:
        """The pair as the command line spells it."""
        append = "" if self.append_axis is None else f"@append:{self.append_axis}"
        start = f"@start:{self.start}" if self.start else ""
        return f"--state {self.input}={self.output}{append}{start}{'@crossed' if self.crossed else ''}"

    @property
    def text(self) -> str:
        how = "" if self.append_axis is None else f", appended along axis {self.append_axis}"
        return f"{self.input} <- {self.output}{how}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignRequest:
    """The request, as on the command line. Raises SpecError for text that is not a pair, size, bound or tolerance.

    reference  'pkg.module:Name' or 'path/to/file.py:Name'
    states     'INPUT=OUTPUT', '...@append:AXIS', '...@start:N'; patterns with a '*' on both sides
    no_states  outputs that are not states, although their names look like it
    steps      length of the stream, at least 1; fitting a slope needs 16
    sizes      'AXIS=N' or 'AXIS=OTHER+OTHER'
    bounds     'INPUT=LOW:HIGH', both included
    batch_axis name of the dynamic axis that is the batch; None: found by name or position
    tolerances 'METRIC=LIMIT', instead of limits by the rule
    seed       seed of every drawn input
    """

    reference: str
    graph: Path
    states: tuple[str, ...] = ()
    no_states: tuple[str, ...] = ()
    steps: int = NUM_STEPS
    sizes: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    batch_axis: str | None = None
    tolerances: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"--steps is {self.steps}", expected="at least 1", fix=f"leave it out for {NUM_STEPS}")
        self.pairs(), self.parsed_sizes(), self.parsed_bounds(), self.parsed_tolerances()

    def pairs(self) -> tuple[StatePair, ...]:
        """The pairs as given, including patterns."""
        return tuple(StatePair.parse(text) for text in self.states)

    def parsed_sizes(self) -> dict[str, str]:
        """Axis -> a number or a sum of axes."""
        form = "AXIS=N, or AXIS=OTHER+OTHER for a sum of axes"
        found = [_read("--size", text, SIZE, form, "--size rows=4") for text in self.sizes]
        return {match["axis"].strip(): match["size"].strip() for match in found}

    def parsed_bounds(self) -> dict[str, Bound]:
        """Input -> its smallest and largest value."""
        form = "INPUT=LOW:HIGH with LOW <= HIGH, both included"
        found = [_read("--bound", text, BOUND, form, "--bound tokens=0:31999") for text in self.bounds]
        return {match["input"]: (float(match["low"]), float(match["high"])) for match in found}

    def parsed_tolerances(self) -> dict[str, float]:
        """Metric -> its limit."""
        form = f"METRIC=LIMIT with a limit above 0, and one of the metrics {', '.join(TOLERATED)}"
        found = [_read("--tolerance", text, TOLERANCE, form, "--tolerance rel_l2=0.05") for text in self.tolerances]
        return {match["metric"]: float(match["limit"]) for match in found}

    def command(self, steps: int | None = None) -> str:
        """The check as a command line, with `steps` steps, or else as many as requested."""
        steps = steps or self.steps
        options = {"--state": self.states, "--no-state": self.no_states, "--size": self.sizes, "--bound": self.bounds}
        options |= {"--tolerance": self.tolerances}
        options |= {"--batch-axis": (self.batch_axis,)} if self.batch_axis is not None else {}
        words = ["pvc-export", "check", "--reference", self.reference, "--graph", str(self.graph)]
        words += [word for option, values in options.items() for value in values for word in (option, value)]
        words += ["--seed", str(self.seed)] if self.seed else []
        return shlex.join(words + (["--steps", str(steps)] if steps != NUM_STEPS else []))
