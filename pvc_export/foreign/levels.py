"""Levels A to E for a graph of any origin: the file, one step, other sizes, a stream, and its drift."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from engines.errors import ModelError

from ..parity.fault import Fault
from ..parity.levels import Rule
from ..parity.state.trial import NotExecuted
from .findings import Findings, of_rules
from .limits import MIN_DRIFT_STEPS
from .reference import require_function
from .runs import FORCED, OWN, Run
from .session import RunFailed, faults_of
from .sides import Arrays, Sides
from .states import Declared

REPORTED_ZERO = "Both sides start from the zero state there, so the step itself is wrong."
REPORTED_FED = "The reference's state is fed at every step there, so the step itself is wrong."
NOT_TAKEN = "a state of a size that the graph does not accept"


def check_file(declared: Declared, opening: RunFailed | None = None) -> Findings:
    """A: the file is valid ONNX, its shapes fit together, and ONNX Runtime opens it (`opening` is its error, if not).

    That every declared pair exists and fits was checked earlier: a wrong pair is a mistake in the command line.
    """
    valid = ", ".join(faults_of(declared.readable, declared.wiring.num_bytes))
    edited = "a file that was edited after the export, or exported for another version of ONNX"
    found = of_rules(_rule("onnx.checker, strict shape inference", valid), cause=edited)
    lacks = "an operator or opset that ONNX Runtime does not support"
    said = "" if opening is None else f"ONNX Runtime's CPU cannot open the file: {opening}"
    return found + of_rules(_rule(f"ONNX Runtime CPU, opset {declared.wiring.opset}", said), cause=lacks)


def check_shapes(untrue: dict[str, str]) -> Findings:
    """Declared output shapes that a run disproves. They belong to level A, though only a run shows them."""
    cause = (
        "an axis declared dynamic, or constant, in the export that is not: an output allocated by the declared shape "
        "has the wrong size. Correct dynamic_axes or dynamic_shapes, and export again"
    )
    rules = [_rule(f"shape of '{name}'", f"output '{name}' is declared wrongly: {why}") for name, why in untrue.items()]
    return of_rules(*rules, cause=cause)


def _rule(name: str, wrong: str) -> Rule:
    return Rule(level="A", name=name, passed=not wrong, detail=wrong or "nothing wrong")


def check_step(sides: Sides) -> Iterator[Findings]:
    """B: every output and state output after one step from the zero state. Raises ModelError for a reference that
    cannot be used."""
    feeds = sides.first("B", 0, sides.declared.sizes)
    want = require_function(sides.reference, feeds)
    run = Run("B", sides, shown=REPORTED_ZERO)
    run.step(0, feeds, want, sides.double.run(feeds), cause=_why_not_run(sides.declared, feeds))
    yield run.found()
    sides.progress(0.1)


def check_sizes(sides: Sides) -> Iterator[Findings]:
    """C: one step from the zero state, with one dynamic axis at another size: 1, and two that B did not use."""
    base = sides.declared.sizes
    free = [symbol for symbol in base if symbol not in sides.declared.pinned]
    if not free:
        raise NotExecuted(
            "no axis is dynamic" if not base else "every dynamic axis is fixed to one size, by --size or by a state"
        )
    for symbol in free:
        for size in other_sizes(base[symbol], grows=symbol in sides.declared.growing):
            narrow = f"--size {shlex.quote(f'{symbol}={base[symbol]}')}"
            run = Run("C", sides, f"{symbol} = {size}", "size", narrow, shown=REPORTED_ZERO)
            feeds = sides.first("C", size, base | {symbol: size})
            try:
                want = sides.reference.run(feeds)
            except ModelError as error:
                yield Findings(rules=(Rule(level="C", name=run.name, passed=None, detail=error.what),))
                continue
            asked = f"the graph fails at {run.name} (level B ran it at {base[symbol]})"
            cause = "a size that was traced as a constant: in a Reshape, an Expand, a mask or a position table"
            failing = f"axis '{symbol}' is declared dynamic, but {asked}"
            run.step(0, feeds, want, sides.double.run(feeds), failing=failing, cause=cause)
            yield run.found()
    sides.progress(0.2)


def other_sizes(base: int, *, grows: bool) -> tuple[int, ...]:
    """Other sizes than `base`: 1 and two more. An axis that must begin with some rows is not tried with fewer."""
    more = (base + 2, 2 * base + 3)
    return more if grows and base else (1, *(more if 1 not in more else (2, 3)))


def check_stream(sides: Sides) -> Iterator[Findings]:
    """D: a stream, each side with its own state; and every step once more on the reference's state."""
    declared, streamed, num_steps = sides.declared, sides.streamed, sides.request.steps
    zero = declared.zero_states(declared.sizes)
    forced = Run("D", sides, FORCED, shown=REPORTED_FED)
    own = Run("D", sides, OWN, noise=streamed.noise, forced=forced)
    reference = exact = states = zero
    for step in range(num_steps):
        drawn = sides.draw("D", step, declared.sizes_with(declared.sizes, reference))
        # The graph takes the reference's states in the graph's dtypes. If that rounds them, the reference gets the
        # rounded states too.
        told = {name: state.astype(zero[name].dtype) for name, state in reference.items()}
        want, fed = sides.reference.run(drawn | reference), drawn | told
        same = all(told[name].dtype == reference[name].dtype for name in told)
        forced.step(step, fed, want if same else sides.reference.run(fed), sides.double.run(fed), cause=NOT_TAKEN)
        floor = sides.double.run(drawn | exact)
        got = own.step(step, drawn | states, want, floor, cause=NOT_TAKEN)
        reference = sides.follow_reference(reference, want)
        exact = sides.follow_reference(exact, floor) if floor is not None else exact
        if not own.ended:
            streamed.add(step, got, want, floor)
            try:
                states = sides.follow_graph(states, got)
            except RunFailed as error:
                own.end(step, str(error), NOT_TAKEN)
            own.ended = own.ended or any(states[name].shape != state.shape for name, state in reference.items())
        sides.progress(0.2 + 0.7 * (step + 1) / num_steps)
    yield own.found() + forced.found()


def check_drift(sides: Sides) -> Iterator[Findings]:
    """E: whether the error of any output grows over the stream by more than the noise floor allows. Covers every
    output that was finite over enough steps."""
    given = sides.request.parsed_tolerances()
    if given and "rel_l2" not in given:
        raise NotExecuted("--tolerance gives no rel_l2, which a slope is compared with")
    drifts = tuple(
        sides.judge.drift(name, samples, sides.streamed.noise)
        for name, samples in sides.streamed.samples.items()
        if len(samples) >= MIN_DRIFT_STEPS and np.isfinite([sample.error + sample.gap for sample in samples]).all()
    )
    if not drifts:
        raise NotExecuted(f"a slope needs {MIN_DRIFT_STEPS} steps of a float output without NaN: --steps N")
    cause = "a constant that is nearly right (a decay, a step, an epsilon), or a state kept in a narrower dtype"
    wrong = [
        Fault(
            kind="drift",
            part=drift.tensor,
            about=OWN,
            what=f"{sides.declared.describe(drift.tensor)} {drift.verdict}",
            level="E",
            cause=cause,
        )
        for drift in drifts
        if drift.verdict != "ok"
    ]
    yield Findings(drifts=drifts, diagnosed=tuple(wrong))


def _why_not_run(declared: Declared, feeds: Arrays) -> str:
    empty = next((pair for pair in declared.states if not feeds[pair.input].size), None)
    if empty is not None:
        one_row = replace(empty, start=1).option()
        return f"a state that cannot begin empty. Let it begin with one row of zeros: {one_row}"
    return (
        "sizes that do not fit each other (--size AXIS=N, --size AXIS=OTHER+OTHER), or values out of range "
        "(--bound INPUT=LOW:HIGH)"
    )
