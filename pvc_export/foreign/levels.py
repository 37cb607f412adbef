"""Levels A to E of the ladder for a graph of any origin: the file, a step, other sizes, a stream, and its drift.

Note: a level ends with findings, not with an exception. Whatever can still run after a fault does, so that a report
shows how far the fault reaches. Only a reference that cannot be used at all raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from engines.errors import ModelError

from ..parity.drift.report import Drift, Sample
from ..parity.metrics import metrics_of
from ..report.text import count
from .causes import Failure, likely_cause
from .limits import FAITHFUL, MIN_DRIFT_STEPS, Compared, Floors, compare, drift_of
from .report import Finding, Level
from .session import RunFailed, Wiring, faults_of
from .sides import Arrays, Sides
from .states import Declared

OWN, FORCED = "own state", "reference's state"
REPORTED_ZERO = "Both sides start from the zero state there, so the step itself is wrong."
REPORTED_FED = "That is with the reference's state fed at every step: the step itself is wrong."
REPORTED_STEP = "Fed the reference's state, it is wrong at that step too: the step itself is wrong."
REPORTED_GROWTH = "Fed the reference's state, it is right at that step: only what accumulates is wrong."


@dataclass(kw_only=True, slots=True)
class Judge:
    """Holds the outputs of one level against what they should be. A fault is told once for every output and run."""

    letter: str
    sides: Sides
    compared: list[Compared] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def hold(
        self, got: Arrays, want: Arrays, *, run: str, step: int, floors: Floors, axis: str | None = None,
        feeds: Arrays | None = None, told: str = "", cause: str = "", forced: Callable[[str], str] = lambda _: "",
    ) -> set[str]:  # fmt: skip
        """The outputs that differ, by name.

        feeds  what both sides were fed: the likely cause is looked for there, unless it is given as `cause`
        told   what is wrong with an output, before the numbers;  forced  what teacher forcing showed of it
        """
        wrong, sides = set[str](), self.sides
        for name, expected in want.items():
            floor = floors.worst.get(name)
            found = compare(got[name], expected, tensor=name, run=run, step=step, floor=floor, unit=sides.unit)
            self.compared.append(found)
            if found.passed:
                continue
            wrong.add(name)
            if self.is_news(name, run):
                what = f"{sides.declared.describe(name)}{told}: {found.text()}"
                if feeds is not None:
                    failure = Failure(
                        sides=sides, tensor=name, got=got, want=want, feeds=feeds, step=step, floor=floor
                    )  # fmt: skip
                    cause = likely_cause(failure)
                self.add(what, cause, tensor=name, step=step, run=run, axis=axis, forced=forced(name))
        return wrong

    def is_news(self, tensor: str, run: str) -> bool:
        return not any(found.tensor == tensor and found.run == run for found in self.findings)

    def add(
        self, what: str, cause: str, *, tensor: str | None = None, step: int | None = None, run: str = "",
        axis: str | None = None, forced: str = "",
    ) -> None:  # fmt: skip
        """A finding of this level."""
        self.findings.append(
            Finding(
                level=self.letter, tensor=tensor, step=step, run=run, axis=axis, what=what, forced=forced, cause=cause
            )
        )

    def hold_step(
        self, feeds: Arrays, want: Arrays, *, failing: tuple[str, str], run: str = "", axis: str | None = None
    ) -> None:
        """One step from the zero state. `failing`: what it means if the graph fails on it, and the likely cause."""
        floors = Floors()
        floors.add(want, self.sides.double.run(feeds))
        try:
            got = self.sides.session.run(feeds)
        except RunFailed as error:
            self.add(f"{failing[0]}: {error}", failing[1], step=0, run=run, axis=axis)
        else:
            self.hold(got, want, run=run, step=0, floors=floors, axis=axis, feeds=feeds, forced=lambda _: REPORTED_ZERO)

    def level(self, note: str, *, left_out: dict[str, str] | None = None) -> Level:
        """What was found, the first step first, and in it the stream's own run and the first output of the file."""
        order = [None, *(port.name for port in self.sides.declared.outputs)]
        findings = sorted(
            self.findings,
            key=lambda one: (
                -1 if one.step is None else one.step,
                order.index(one.tensor) if one.tensor in order else 0,
                one.run == FORCED,
            ),
        )
        return Level(
            letter=self.letter,
            note=note,
            compared=tuple(self.compared),
            findings=tuple(findings),
            left_out=left_out or {},
        )


def check_file(declared: Declared, wiring: Wiring, opening: RunFailed | None) -> Level:
    """A: the file is valid ONNX, its shapes fit together, and ONNX Runtime opens it (`opening` says if not).

    That every declared pair exists and fits was asked before: a wrong pair is the command line's fault.
    """
    faults = [
        (fault, "an export that was edited, or made for another version of ONNX")
        for fault in faults_of(declared.path, wiring.num_bytes)
    ]
    if opening is not None:
        what = f"ONNX Runtime's CPU does not open the file: {opening}"
        faults.append((what, "an operator or opset that it does not have"))
    pairs = count(len(declared.states), "state pair")
    note = f"onnx.checker, strict shape inference, {pairs}, ONNX Runtime CPU, opset {wiring.opset}"
    findings = tuple(Finding(level="A", what=what, cause=cause) for what, cause in faults)
    return Level(letter="A", note=note, findings=findings)


def check_step(sides: Sides, feeds: Arrays, want: Arrays) -> Level:
    """B: every output and state output after one step from the zero state. `want` is the reference's."""
    judge = Judge(letter="B", sides=sides)
    failing = f"the graph fails on {_fed(feeds)}", _why_not_run(sides.declared, feeds)
    judge.hold_step(feeds, want, failing=failing)
    return judge.level(f"{len(want)} outputs")


def check_sizes(sides: Sides) -> Level:
    """C: one step from the zero state, with one dynamic axis at another size: 1, and two that B did not use."""
    judge, base, left_out = Judge(letter="C", sides=sides), sides.declared.sizes, dict[str, str]()
    free = [symbol for symbol in base if symbol not in sides.declared.pinned]
    if not free:
        reason = "no axis is dynamic" if not base else "--size gives every dynamic axis one size"
        return Level(letter="C", not_executed=reason)
    for symbol in free:
        for size in other_sizes(base[symbol], grows=symbol in sides.declared.growing):
            sizes, run = base | {symbol: size}, f"{symbol} = {size}"
            feeds = sides.draw("C", size, sizes) | sides.declared.zero_states(sizes)
            try:
                want = sides.reference.run(feeds)
            except ModelError as error:
                left_out[run] = error.what
                continue
            what = f"axis '{symbol}' is declared dynamic, but the graph fails at {run} (level B asked {base[symbol]})"
            cause = "a size that was traced as a constant: in a Reshape, an Expand, a mask or a position table"
            judge.hold_step(feeds, want, run=run, axis=symbol, failing=(what, cause))
    return judge.level(f"axes {', '.join(free)}", left_out=left_out)


def other_sizes(base: int, *, grows: bool) -> tuple[int, ...]:
    """Three sizes that are not `base`. An axis that must begin with some rows is not asked for fewer."""
    more = (base + 2, 2 * base + 3)
    return more if grows and base else (1, *(more if 1 not in more else (2, 3)))


@dataclass(kw_only=True, slots=True)
class Streamed:
    """What a stream leaves for other levels: how far off every step was, by output, and the noise floor."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    floors: Floors = field(default_factory=Floors)

    def add(self, step: int, got: Arrays, want: Arrays, exact: Arrays | None) -> None:
        """One step of the graph's own stream, beside the reference's in float32 and in float64."""
        for name, b in want.items():
            if b.dtype.kind == "f" and got[name].shape == b.shape:
                true = b if exact is None else exact[name]
                error, floor, gap = (
                    metrics_of(*pair).rel_l2 for pair in ((got[name], true), (b, true), (got[name], b))
                )
                self.samples.setdefault(name, []).append(Sample(frame=step, error=error, floor=floor, gap=gap))


def check_stream(sides: Sides, num_steps: int, progress: Callable[[float], None]) -> tuple[Level, Streamed]:
    """D: a stream, each side with its own state; and every step once more, fed the reference's state."""
    declared, judge, streamed = sides.declared, Judge(letter="D", sides=sides), Streamed()
    zero = declared.zero_states(declared.sizes)
    own, forced = _Runner(judge=judge, run=OWN, floors=streamed.floors), _Runner(judge=judge, run=FORCED)
    reference = exact = own_states = zero
    for step in range(num_steps):
        drawn = sides.draw("D", step, declared.sizes_with(declared.sizes, reference))
        # The graph takes the reference's states in its own dtypes. Where that rounds them, so does the reference.
        told = {name: state.astype(zero[name].dtype) for name, state in reference.items()}
        want, fed = sides.reference.run(drawn | reference), drawn | told
        same = all(told[name].dtype == reference[name].dtype for name in told)
        forced_want = want if same else sides.reference.run(fed)
        forced.step(step, fed, forced_want, sides.double.run(fed), lambda _: REPORTED_FED)
        floor = sides.double.run(drawn | exact)
        own.step(step, drawn | own_states, want, floor, forced.told)
        if not own.ended:
            streamed.add(step, own.got, want, floor)
        reference = sides.follow_reference(reference, want)
        exact = sides.follow_reference(exact, floor) if floor is not None else exact
        own_states = own.follow(step, own_states, {name: state.shape for name, state in reference.items()})
        progress((step + 1) / num_steps)
    return judge.level(f"{num_steps} steps with its own state, and each with the reference's"), streamed


@dataclass(kw_only=True, slots=True)
class _Runner:
    """One of the graph's two runs through the stream. It ends where the graph fails, or its state has another shape."""

    judge: Judge
    run: str
    floors: Floors = field(default_factory=Floors)
    ended: bool = False
    got: Arrays = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)

    def step(self, step: int, feeds: Arrays, want: Arrays, exact: Arrays | None, forced: Callable[[str], str]) -> None:
        self.floors.add(want, exact)
        if self.ended:
            return
        try:
            self.got = self.judge.sides.session.run(feeds)
        except RunFailed as error:
            self._end(step, f"the graph fails on {_fed(feeds)}: {error}")
            return
        self.wrong = self.judge.hold(
            self.got, want, run=self.run, step=step, floors=self.floors, feeds=feeds, forced=forced
        )

    def told(self, tensor: str) -> str:
        """What this run, fed the reference's state, says of an output at the step that it did last."""
        return "" if self.ended else REPORTED_STEP if tensor in self.wrong else REPORTED_GROWTH

    def follow(self, step: int, states: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """The next states, if the run goes on."""
        if self.ended:
            return states
        try:
            states = self.judge.sides.follow_graph(states, self.got)
        except RunFailed as error:
            self._end(step, str(error))
        self.ended = self.ended or any(states[name].shape != shape for name, shape in shapes.items())
        return states

    def _end(self, step: int, what: str) -> None:
        self.ended = True
        self.judge.add(what, "a state of a size that the graph does not take", step=step, run=self.run)


def check_drift(sides: Sides, streamed: Streamed) -> tuple[Level, tuple[Drift, ...]]:
    """E: whether the error of any output grows over the stream, beyond what the noise floor lets it."""
    drifts = tuple(
        drift_of(name, samples, streamed.floors.worst.get(name), sides.unit)
        for name, samples in streamed.samples.items()
        if len(samples) >= MIN_DRIFT_STEPS and np.isfinite([sample.error + sample.gap for sample in samples]).all()
    )
    if not drifts:
        reason = f"a slope needs {MIN_DRIFT_STEPS} steps of a float output without NaN: --steps N"
        return Level(letter="E", not_executed=reason), ()
    findings = tuple(
        Finding(
            level="E",
            tensor=drift.tensor,
            run=OWN,
            what=f"{sides.declared.describe(drift.tensor)} {drift.verdict}",
            cause="a constant that is nearly right (a decay, a step, an epsilon), or a state kept in a narrower dtype",
        )
        for drift in drifts
        if drift.verdict != "ok"
    )
    num_open = sum(drift.doubt(FAITHFUL * drift.noise) is not None for drift in drifts)
    note = f"{count(len(drifts), 'output')}" + (f", {num_open} of them undecided in so few steps" if num_open else "")
    return Level(letter="E", note=note, findings=findings), drifts


def _fed(feeds: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())


def _why_not_run(declared: Declared, feeds: Arrays) -> str:
    empty = next((pair for pair in declared.states if not feeds[pair.input].size), None)
    if empty is not None:
        one_row = replace(empty, start=1).option()
        return f"a state that cannot begin empty; let it begin with one row of zeros: {one_row}"
    return (
        "sizes that do not fit each other (--size AXIS=N, --size AXIS=OTHER+OTHER), or values (--bound INPUT=LOW:HIGH)"
    )
