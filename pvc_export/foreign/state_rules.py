"""Levels G, H and I for a graph of any origin: rules that need no reference.

G  a stream from the zero state repeats itself bit for bit, whatever ran before; streams do not affect each other;
   a run does not write into its input arrays
H  a row of a batch gives what it would give alone, and equal rows stay equal: within the noise floor, since a kernel
   may sum in another order for another batch size
I  the same inputs give the same bits, again and in a new session
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..parity.levels import Rule
from ..parity.state.trial import Broken, NotExecuted, require_same, unlike
from .findings import Findings, of_rules
from .runs import KEPT, Run
from .session import GraphSession, RunFailed
from .sides import NUM_RULE_STEPS, Arrays, Sides, draw_stream, run_stream

NUM_EQUAL_ROWS = 3
ROWS = "an operation across the batch axis (a mean, a broadcast, an index 0, a Reshape that folds it into another axis)"


def check_states(sides: Sides) -> Iterator[Findings]:
    """G: reset, two streams on one session, and who owns the arrays."""
    if not sides.declared.states:
        raise NotExecuted("no state was declared: --state INPUT=OUTPUT")
    sizes = sides.declared.sizes
    one, two = (draw_stream(sides, "G", sizes, first=first) for first in (0, NUM_RULE_STEPS))
    first, other, again = (run_stream(sides, drawn, sizes) for drawn in (one, two, one))
    yield _same("G", "reset", again, first, "a stream from the zero state does not repeat the first run")
    turns, inputs = _interleave(sides, (one, two))
    told = "a stream that alternates with another one differs from the same stream alone"
    yield _same("G", "two streams", turns[0] + turns[1], first + other, told)
    yield of_rules(inputs, cause=KEPT)


def _interleave(sides: Sides, streams: Sequence[Sequence[Arrays]]) -> tuple[list[list[Arrays]], Rule]:
    """Outputs of streams that alternate on one session, and the rule that no input array is modified."""
    states = [sides.declared.zero_states(sides.declared.sizes) for _ in streams]
    outputs: list[list[Arrays]] = [[] for _ in streams]
    wrong = []
    for step in range(NUM_RULE_STEPS):
        for index, drawn in enumerate(streams):
            feeds = drawn[step] | states[index]
            before = {name: array.copy() for name, array in feeds.items()}
            outputs[index].append(sides.session.run(feeds))
            wrong += [name for name, array in feeds.items() if unlike(array, before[name])]
            states[index] = sides.follow_graph(states[index], outputs[index][-1])
    detail = "no run modifies its inputs"
    if wrong:
        detail = f"the run modified the array of its input '{wrong[0]}', expected it to stay unchanged"
    return outputs, Rule(level="G", name="inputs", passed=not wrong, detail=detail)


def check_batch(sides: Sides) -> Iterator[Findings]:
    """H: rows of a batch are independent. Needs a dynamic batch axis; uses the stream's noise floor."""
    batch, noise = sides.declared.batch, sides.streamed.noise
    if batch is None:
        raise NotExecuted("no dynamic axis is named batch or is axis 0 of every input: --batch-axis NAME")
    if batch in sides.declared.pinned:
        raise NotExecuted(f"'{batch}' is fixed to one size, by --size or by a state")
    two, one, equal = (sides.declared.sizes | {batch: num_rows} for num_rows in (2, 1, NUM_EQUAL_ROWS))
    drawn = draw_stream(sides, "H", two)
    together = run_stream(sides, drawn, two)
    for row in range(2):
        alone = run_stream(sides, _rows(sides, drawn, [row], count=2), one)
        run = Run("H", sides, f"row {row} of 2", "stream", noise=noise)
        yield _held(run, _rows(sides, together, [row], count=2), alone, " differs from the same row run alone")
    repeated = _rows(sides, draw_stream(sides, "H", one, first=NUM_RULE_STEPS), [0] * NUM_EQUAL_ROWS, count=1)
    outputs = run_stream(sides, repeated, equal)
    first, *others = (_rows(sides, outputs, [row], count=NUM_EQUAL_ROWS) for row in range(NUM_EQUAL_ROWS))
    for row, picked in enumerate(others, start=1):
        run = Run("H", sides, f"equal row {row}", "stream", noise=noise)
        yield _held(run, picked, first, " differs from an equal row of its batch")


def _rows(sides: Sides, stream: Sequence[Arrays], rows: list[int], *, count: int) -> list[Arrays]:
    """Select rows of a batch of `count`, in every array that has the batch axis; other arrays are unchanged."""
    outputs = {port.name: port for port in sides.declared.outputs}
    picked = [dict(arrays) for arrays in stream]
    for arrays in picked:
        for name, array in arrays.items():
            axis = sides.declared.batch_axis(name)
            if axis is None and name in outputs:  # exporters may invent another name for its batch axis
                dims = enumerate(outputs[name].shape or ["batch"])
                axis = next((i for i, dim in dims if isinstance(dim, str) and array.shape[i : i + 1] == (count,)), None)
            if axis is not None and array.shape[axis] != count:
                raise RunFailed(f"'{name}' has {array.shape[axis]} rows for a batch of {count}")
            if axis is not None:
                arrays[name] = np.take(array, rows, axis=axis)
    return picked


def _held(run: Run, got: Sequence[Arrays], want: Sequence[Arrays], told: str) -> Findings:
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        run.hold(step, a, b, told=told, cause=ROWS)
    return run.found()


def check_determinism(sides: Sides) -> Iterator[Findings]:
    """I: run every step twice, and the stream again in a new session."""
    sizes = sides.declared.sizes
    drawn = draw_stream(sides, "I", sizes)
    first = run_stream(sides, drawn, sizes)
    states, twice = sides.declared.zero_states(sizes), list[Arrays]()
    for inputs in drawn:
        once = sides.session.run(inputs | states)
        twice.append(sides.session.run(inputs | states))
        states = sides.follow_graph(states, once)
    anew = run_stream(replace(sides, session=GraphSession(sides.declared)), drawn, sizes)
    yield _same("I", "twice", twice, first, "the same inputs do not give the same bits")
    yield _same("I", "new session", anew, first, "a new session does not give the same bits")


def _same(level: str, name: str, got: Sequence[Arrays], want: Sequence[Arrays], told: str) -> Findings:
    """Whether every output of every step is bit-equal; if not, `told` and the first output that differs."""
    wrong = ""
    try:
        for step, (a, b) in enumerate(zip(got, want, strict=True)):
            require_same(a, b, f"{told}: step {step}, output ")
    except Broken as fault:
        wrong = str(fault)
    detail = wrong or f"{len(want)} steps, {len(want[0])} outputs"
    return of_rules(Rule(level=level, name=name, passed=not wrong, detail=detail), cause=KEPT)
