"""Levels G, H and I of the ladder for a graph of any origin: rules that need no reference.

G  a stream from the zero state repeats itself bit for bit, whatever ran before; streams do not see each other;
   a run does not write into the arrays that it is fed
H  a row of a batch is what it would be alone, and equal rows stay equal: within the noise floor, since a kernel may
   sum in another order for another batch
I  the same inputs give the same bits, again and in a new session
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..parity.state.trial import unlike
from .levels import Judge
from .limits import Floors
from .report import Level
from .session import GraphSession, RunFailed
from .sides import Arrays, Sides, draw_stream, run_stream

NUM_STEPS = 4
NUM_EQUAL_ROWS = 3
KEPT = "something that is kept between runs: in the graph (a random or stateful operator) or in the session"
ROWS = "an operation over the batch axis (a mean, a broadcast, an index 0, a Reshape that folds it into another)"


def check_states(sides: Sides) -> Level:
    """G: reset, two streams on one session, and who owns the arrays."""
    if not sides.declared.states:
        return Level(letter="G", not_executed="no state was declared: --state INPUT=OUTPUT")
    return _judged("G", sides, _check_states, "reset, two interleaved streams, inputs unchanged")


def _check_states(judge: Judge) -> None:
    sides, sizes = judge.sides, judge.sides.declared.sizes
    one, two = (draw_stream(sides, "G", sizes, NUM_STEPS, first=first) for first in (0, NUM_STEPS))
    first, other, again = (run_stream(sides, sides.session, drawn, sizes) for drawn in (one, two, one))
    _hold_bits(judge, again, first, run="reset", told="a stream from the zero state is not what it was the first time")
    for together, alone in zip(_interleave(judge, (one, two)), (first, other), strict=True):
        told = "a stream is not what it is alone, when another takes turns with it"
        _hold_bits(judge, together, alone, run="two streams", told=told)


def _interleave(judge: Judge, streams: Sequence[Sequence[Arrays]]) -> list[list[Arrays]]:
    """Streams that take turns on one session; every array that is fed must stay as it was."""
    sides = judge.sides
    states = [sides.declared.zero_states(sides.declared.sizes) for _ in streams]
    outputs: list[list[Arrays]] = [[] for _ in streams]
    for step in range(NUM_STEPS):
        for index, drawn in enumerate(streams):
            feeds = drawn[step] | states[index]
            before = {name: array.copy() for name, array in feeds.items()}
            outputs[index].append(sides.session.run(feeds))
            for name, array in feeds.items():
                if unlike(array, before[name]) and judge.is_news(name, "inputs"):
                    told = f"the run changed the array of its input '{name}', expected it to be left alone"
                    judge.add(told, "an operator that works in place", tensor=name, step=step, run="inputs")
            states[index] = sides.follow_graph(states[index], outputs[index][-1])
    return outputs


def check_batch(sides: Sides, floors: Floors) -> Level:
    """H: where a batch axis is dynamic. `floors` are those of the stream."""
    batch = sides.declared.batch
    if batch is None or batch in sides.declared.pinned:
        reason = "no dynamic axis is named batch or is axis 0 of every input"
        return Level(letter="H", not_executed=reason if batch is None else f"--size gives '{batch}' one size")
    return _judged("H", sides, lambda judge: _check_batch(judge, batch, floors), f"axis '{batch}'")


def _check_batch(judge: Judge, batch: str, floors: Floors) -> None:
    sides = judge.sides
    two, one, equal = (sides.declared.sizes | {batch: num_rows} for num_rows in (2, 1, NUM_EQUAL_ROWS))
    drawn = draw_stream(sides, "H", two, NUM_STEPS)
    together = run_stream(sides, sides.session, drawn, two)
    for row in range(2):
        alone = run_stream(sides, sides.session, _rows(sides, drawn, [row], count=2), one)
        picked = _rows(sides, together, [row], count=2)
        _hold_rows(judge, picked, alone, floors, run=f"row {row} of 2", told=" is not what the row gives alone")
    repeated = _rows(sides, draw_stream(sides, "H", one, NUM_STEPS, first=NUM_STEPS), [0] * NUM_EQUAL_ROWS, count=1)
    outputs = run_stream(sides, sides.session, repeated, equal)
    first, *others = (_rows(sides, outputs, [row], count=NUM_EQUAL_ROWS) for row in range(NUM_EQUAL_ROWS))
    for row, picked in enumerate(others, start=1):
        _hold_rows(judge, picked, first, floors, run=f"equal row {row}", told=" differs from an equal row of its batch")


def _rows(sides: Sides, stream: Sequence[Arrays], rows: list[int], *, count: int) -> list[Arrays]:
    """Some rows of a batch of `count`, of every array that has its axis; the others as they are."""
    drawn = {port.name for port in sides.declared.drawn}
    picked = [dict(arrays) for arrays in stream]
    for arrays in picked:
        for name, array in arrays.items():
            axis = sides.declared.batch_axis(name)
            if axis is None and name not in drawn and array.ndim and array.shape[0] == count:
                axis = 0  # an output whose batch has another name, as exporters invent them
            if axis is not None and array.shape[axis] != count:
                raise RunFailed(f"'{name}' has {array.shape[axis]} rows for a batch of {count}")
            if axis is not None:
                arrays[name] = np.take(array, rows, axis=axis)
    return picked


def _hold_rows(
    judge: Judge, got: Sequence[Arrays], want: Sequence[Arrays], floors: Floors, *, run: str, told: str
) -> None:
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        judge.hold(a, b, run=run, step=step, floors=floors, told=told, cause=ROWS)


def check_determinism(sides: Sides) -> Level:
    """I: every step twice, and the stream in a new session."""
    return _judged("I", sides, _check_determinism, "each run twice, and once in a new session")


def _check_determinism(judge: Judge) -> None:
    sides, sizes = judge.sides, judge.sides.declared.sizes
    drawn = draw_stream(sides, "I", sizes, NUM_STEPS)
    first = run_stream(sides, sides.session, drawn, sizes)
    states, twice = sides.declared.zero_states(sizes), list[Arrays]()
    for inputs in drawn:
        once = sides.session.run(inputs | states)
        twice.append(sides.session.run(inputs | states))
        states = sides.follow_graph(states, once)
    _hold_bits(judge, twice, first, run="twice", told="the same inputs do not give the same bits")
    session = GraphSession(sides.declared.path, num_bytes=sides.wiring.num_bytes)
    anew = run_stream(sides, session, drawn, sizes)
    _hold_bits(judge, anew, first, run="new session", told="a new session does not give the same bits")


def _judged(letter: str, sides: Sides, rules: Callable[[Judge], None], note: str) -> Level:
    """The level, where a graph that does not run is a finding too."""
    judge = Judge(letter=letter, sides=sides)
    try:
        rules(judge)
    except RunFailed as error:
        what = f"the graph does not run through {NUM_STEPS} steps: {error}"
        judge.add(what, "what an earlier level found")
    return judge.level(note)


def _hold_bits(judge: Judge, got: Sequence[Arrays], want: Sequence[Arrays], *, run: str, told: str) -> None:
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        for name in b:
            if (said := unlike(a[name], b[name])) and judge.is_news(name, run):
                what = f"{told}: {judge.sides.declared.describe(name)}{said}"
                judge.add(what, KEPT, tensor=name, step=step, run=run)
