"""Levels A to E of the ladder for a graph of any origin: the file, a step, other sizes, a stream, and its drift.

Unusual: a level ends with findings, not with an exception. What can still run after a fault does, so that a report
shows how far the fault reaches. Only a reference that cannot be used at all raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from engines.errors import ModelError
from engines.memory import Array

from ..parity.drift.statistics import Drift, Sample
from .causes import Failure, likely_cause, likely_shape
from .limits import FAITHFUL, MIN_DRIFT_STEPS, Compared, Floors, compare, difference_of, drift_of
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
    """Holds the outputs of one level against the reference's. A fault is told once for every output and run."""

    letter: str
    sides: Sides
    compared: list[Compared] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def hold(
        self, got: Arrays, want: Arrays, *, run: str, step: int, feeds: Arrays, floors: Floors,
        forced: Callable[[str], str] = lambda _: "",
    ) -> set[str]:  # fmt: skip
        """The outputs that differ, by name. `forced` says of one what teacher forcing showed."""
        wrong = set[str]()
        for port in self.sides.declared.outputs:
            name, a, b = port.name, got[port.name], want[port.name]
            floor = floors.of(name)
            what = self.sides.declared.describe(name)
            failure = Failure(
                sides=self.sides, tensor=name, got=got, want=want, feeds=feeds, step=step, floor=floor
            )  # fmt: skip
            if a.shape != b.shape:
                text, guess = f"{what} has the shape {a.shape}, the reference's has {b.shape}", likely_shape
            else:
                found = compare(a, b, tensor=name, run=run, step=step, floor=floor, unit=self.sides.unit)
                self.compared.append(found)
                if found.passed:
                    continue
                text, guess = f"{what}: {found.text()}", likely_cause
            wrong.add(name)
            if not any(finding.tensor == name and finding.run == run for finding in self.findings):
                self.add(tensor=name, step=step, run=run, text=text, forced=forced(name), likely=guess(failure))
        return wrong

    def add(
        self, *, text: str, likely: str, tensor: str | None = None, step: int | None = None, run: str = "",
        forced: str = "",
    ) -> None:  # fmt: skip
        self.findings.append(
            Finding(level=self.letter, tensor=tensor, step=step, run=run, text=text, forced=forced, likely=likely)
        )

    def level(self, note: str, *, left_out: tuple[str, ...] = ()) -> Level:
        return Level(
            letter=self.letter,
            note=note,
            compared=tuple(self.compared),
            findings=tuple(self.findings),
            left_out=left_out,
        )


def check_file(declared: Declared, wiring: Wiring, opening: RunFailed | None) -> Level:
    """A: the file is valid ONNX, its shapes fit together, and ONNX Runtime opens it (`opening` says if not).

    That every declared pair exists and fits was asked before: a wrong pair is the command line's fault.
    """
    findings = [
        Finding(level="A", text=fault, likely="an export that was edited, or made for another version of ONNX")
        for fault in faults_of(declared.path, wiring.num_bytes)
    ]
    if opening is not None:
        text = f"ONNX Runtime's CPU does not open the file: {opening}"
        findings.append(Finding(level="A", text=text, likely="an operator or opset that it does not have"))
    pairs = f"{len(declared.states)} state pair{'s' if len(declared.states) != 1 else ''}"
    note = f"onnx.checker, strict shape inference, {pairs}, ONNX Runtime CPU, opset {wiring.opset}"
    return Level(letter="A", note=note, findings=tuple(findings))


def check_step(sides: Sides, feeds: Arrays, want: Arrays) -> Level:
    """B: every output and state output after one step from the zero state. `want` is the reference's."""
    judge, floors = Judge(letter="B", sides=sides), Floors()
    _add_floor(floors, want, sides.double.run(feeds))
    try:
        got = sides.session.run(feeds)
    except RunFailed as error:
        judge.add(step=0, text=f"the graph fails on {_fed(feeds)}: {error}", likely=_why_not_run(sides.declared, feeds))
    else:
        judge.hold(got, want, run="", step=0, feeds=feeds, floors=floors, forced=lambda _: REPORTED_ZERO)
    return judge.level(f"{len(want)} outputs")


def check_sizes(sides: Sides) -> Level:
    """C: one step from the zero state, with one dynamic axis at another size: 1, and two that B did not use."""
    judge, base, left_out = Judge(letter="C", sides=sides), sides.declared.sizes, list[str]()
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
                left_out.append(f"{run}: {error.what}")
                continue
            _hold_size(judge, feeds, want, run=run, symbol=symbol, base=base[symbol])
    return judge.level(f"axes {', '.join(free)}", left_out=tuple(left_out))


def _hold_size(judge: Judge, feeds: Arrays, want: Arrays, *, run: str, symbol: str, base: int) -> None:
    floors = Floors()
    _add_floor(floors, want, judge.sides.double.run(feeds))
    try:
        got = judge.sides.session.run(feeds)
    except RunFailed as error:
        judge.add(
            run=run,
            text=f"axis '{symbol}' is declared dynamic, but the graph fails at {run} (level B asked {base}): {error}",
            likely="a size that was traced as a constant: in a Reshape, an Expand, a mask or a position table",
        )
    else:
        judge.hold(got, want, run=run, step=0, feeds=feeds, floors=floors)


def other_sizes(base: int, *, grows: bool) -> tuple[int, ...]:
    """Three sizes that are not `base`. An axis that must begin with some rows is not asked for fewer."""
    more = (base + 2, 2 * base + 3)
    return more if grows and base else (1, *(more if 1 not in more else (2, 3)))


@dataclass(kw_only=True, slots=True)
class Streamed:
    """What a stream leaves behind for other levels: how far off every step was, by output, and the noise floor."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    floors: Floors = field(default_factory=Floors)

    def add(self, step: int, got: Arrays, want: Arrays, exact: Arrays | None) -> None:
        """One step of the graph's own stream, beside the reference's in float32 and in float64."""
        for name, b in want.items():
            if b.dtype.kind == "f" and got[name].shape == b.shape:
                gap = _rel_l2(got[name], b)
                error, floor = (
                    (gap, 0.0) if exact is None else (_rel_l2(got[name], exact[name]), _rel_l2(b, exact[name]))
                )
                self.samples.setdefault(name, []).append(Sample(frame=step, error=error, floor=floor, gap=gap))


def check_stream(sides: Sides, num_steps: int, progress: Callable[[float], None]) -> tuple[Level, Streamed]:
    """D: a stream, each side with its own state; and every step once more, fed the reference's state."""
    declared, judge, streamed = sides.declared, Judge(letter="D", sides=sides), Streamed()
    zero = declared.zero_states(declared.sizes)
    reference, exact = zero, zero
    own, forced = _Runner(judge=judge, run=OWN, floors=streamed.floors), _Runner(judge=judge, run=FORCED)
    own_states = zero
    for step in range(num_steps):
        drawn = sides.draw("D", step, declared.sizes_with(declared.sizes, reference))
        want, told = sides.reference.run(drawn | reference), _as_fed(reference, zero)
        same = all(told[name].dtype == reference[name].dtype for name in told)
        fed = drawn | told
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
    judge.findings.sort(key=lambda finding: finding.run == FORCED)  # of one step, the stream's own comes first
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

    def step(self, step: int, feeds: Arrays, want: Arrays, exact: Arrays | None, told: Callable[[str], str]) -> None:
        _add_floor(self.floors, want, exact)
        if self.ended:
            return
        try:
            self.got = self.judge.sides.session.run(feeds)
        except RunFailed as error:
            self._end(step, f"the graph fails on {_fed(feeds)}: {error}")
            return
        self.wrong = self.judge.hold(
            self.got, want, run=self.run, step=step, feeds=feeds, floors=self.floors, forced=told
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

    def _end(self, step: int, text: str) -> None:
        self.ended = True
        self.judge.add(step=step, run=self.run, text=text, likely="a state of a size that the graph does not take")


def check_drift(sides: Sides, streamed: Streamed) -> tuple[Level, tuple[Drift, ...]]:
    """E: whether the error of any output grows over the stream, beyond what the noise floor lets it."""
    drifts = tuple(
        drift_of(name, samples, streamed.floors.of(name), sides.unit)
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
            text=f"{sides.declared.describe(drift.tensor)} {growth}",
            likely="a constant that is nearly right (a decay, a step, an epsilon), or a state kept in a narrower dtype",
        )
        for drift in drifts
        if (growth := drift.grows()) is not None
    )
    num_open = sum(drift.is_open(FAITHFUL * drift.noise) is not None for drift in drifts)
    note = f"{len(drifts)} outputs" + (f", {num_open} of them undecided in so few steps" if num_open else "")
    return Level(letter="E", note=note, findings=findings), drifts


def _rel_l2(a: Array, b: Array) -> float:
    return difference_of(a, b, tensor="", where="").rel_l2


def _add_floor(floors: Floors, want: Arrays, exact: Arrays | None) -> None:
    for name, value in (exact or {}).items():
        if value.dtype.kind == "f" and value.shape == want[name].shape:
            floors.add(name, want[name], value)


def _as_fed(states: Arrays, like: Arrays) -> Arrays:
    """The reference's states, rounded to the dtypes that the graph takes."""
    return {name: state.astype(like[name].dtype) for name, state in states.items()}


def _fed(feeds: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())


def _why_not_run(declared: Declared, feeds: Arrays) -> str:
    empty = [pair for pair in declared.states if not feeds[pair.input].size]
    if empty:
        pair = empty[0]
        return (
            f"a state that cannot begin empty; let it begin with one row of zeros: --state {pair.input}={pair.output}"
            f"{'' if pair.append_axis is None else f'@append:{pair.append_axis}'}@start:1"
        )
    return (
        "sizes that do not fit each other (--size AXIS=N, --size AXIS=OTHER+OTHER), or values (--bound INPUT=LOW:HIGH)"
    )
