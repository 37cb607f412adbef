"""Levels G, H and I of the ladder for a graph of any origin: laws that need no reference.

G  a stream from the zero state repeats itself bit for bit, whatever ran before; streams do not see each other;
   a run does not write into the arrays that it is fed
H  a row of a batch is what it would be alone, and equal rows stay equal: within the noise floor, since a kernel may
   sum in another order for another batch
I  the same inputs give the same bits, again and in a new session
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engines.memory import Array

from .levels import Judge
from .limits import Floors, compare
from .report import Level
from .session import GraphSession, RunFailed
from .sides import Arrays, Sides, draw_stream, run_stream

NUM_STEPS = 4
NUM_EQUAL_ROWS = 3
KEPT = "something that is kept between runs: in the graph (a random or stateful operator) or in the session"


def check_states(sides: Sides) -> Level:
    """G: reset, two streams on one session, and who owns the arrays."""
    if not sides.declared.states:
        return Level(letter="G", not_executed="no state was declared: --state INPUT=OUTPUT")
    return _without_failing("G", sides, _check_states, "reset, two interleaved streams, inputs unchanged")


def _check_states(judge: Judge) -> None:
    sides, sizes = judge.sides, judge.sides.declared.sizes
    one, two = (draw_stream(sides, "G", sizes, NUM_STEPS, first=first) for first in (0, NUM_STEPS))
    first = run_stream(sides, sides.session, one, sizes)
    other = run_stream(sides, sides.session, two, sizes)
    again = run_stream(sides, sides.session, one, sizes)
    _hold_bits(judge, first, again, run="reset", told="a stream from the zero state is not what it was the first time")
    together = _interleave(judge, (one, two))
    for outputs, alone in zip(together, (first, other), strict=True):
        told = "a stream is not what it is alone, when another takes turns with it"
        _hold_bits(judge, alone, outputs, run="two streams", told=told)


def _interleave(judge: Judge, streams: Sequence[Sequence[Arrays]]) -> list[list[Arrays]]:
    """Streams that take turns on one session; every array that is fed must stay as it was."""
    sides = judge.sides
    states = [sides.declared.zero_states(sides.declared.sizes) for _ in streams]
    outputs: list[list[Arrays]] = [[] for _ in streams]
    for step in range(NUM_STEPS):
        for index, drawn in enumerate(streams):
            feeds = drawn[step] | states[index]
            before = {name: array.tobytes() for name, array in feeds.items()}
            outputs[index].append(sides.session.run(feeds))
            for name, array in feeds.items():
                if array.tobytes() != before[name] and not any(found.tensor == name for found in judge.findings):
                    told = f"the run changed the array of its input '{name}', expected it to be left alone"
                    judge.add(tensor=name, step=step, run="inputs", text=told, likely="an operator that works in place")
            states[index] = sides.follow_graph(states[index], outputs[index][-1])
    return outputs


def check_batch(sides: Sides, floors: Floors) -> Level:
    """H: where a batch axis is dynamic. `floors` are those of the stream."""
    batch = sides.declared.batch
    if batch is None or batch in sides.declared.pinned:
        reason = "no dynamic axis is named batch or is axis 0 of every input"
        return Level(letter="H", not_executed=reason if batch is None else f"--size gives '{batch}' one size")
    return _without_failing("H", sides, lambda judge: _check_batch(judge, batch, floors), f"axis '{batch}'")


def _check_batch(judge: Judge, batch: str, floors: Floors) -> None:
    sides = judge.sides
    sizes = sides.declared.sizes | {batch: 2}
    one = sides.declared.sizes | {batch: 1}
    drawn = draw_stream(sides, "H", sizes, NUM_STEPS)
    together = run_stream(sides, sides.session, drawn, sizes)
    for row in range(2):
        alone = run_stream(sides, sides.session, [_rows(sides, inputs, [row], count=2) for inputs in drawn], one)
        picked = [_rows(sides, outputs, [row], count=2) for outputs in together]
        _hold_rows(judge, picked, alone, floors, run=f"row {row} of 2", told="is not what the row gives alone")
    equal = draw_stream(sides, "H", one, NUM_STEPS, first=NUM_STEPS)
    repeated = [_rows(sides, inputs, [0] * NUM_EQUAL_ROWS, count=1) for inputs in equal]
    outputs = run_stream(sides, sides.session, repeated, sides.declared.sizes | {batch: NUM_EQUAL_ROWS})
    first = [_rows(sides, found, [0], count=NUM_EQUAL_ROWS) for found in outputs]
    for row in range(1, NUM_EQUAL_ROWS):
        picked = [_rows(sides, found, [row], count=NUM_EQUAL_ROWS) for found in outputs]
        _hold_rows(judge, picked, first, floors, run=f"equal row {row}", told="differs from an equal row of its batch")


def _rows(sides: Sides, arrays: Arrays, rows: list[int], *, count: int) -> Arrays:
    """Some rows of a batch of `count`, of every array that has its axis; the others as they are."""
    picked, drawn = dict(arrays), {port.name for port in sides.declared.drawn}
    for name, array in arrays.items():
        axis = sides.declared.batch_axis(name)
        if axis is None and name not in drawn and array.ndim and array.shape[0] == count:
            axis = 0  # an output whose batch has another name, as exporters invent them
        if axis is not None and array.shape[axis] != count:
            raise RunFailed(f"'{name}' has {array.shape[axis]} rows for a batch of {count}")
        if axis is not None:
            picked[name] = np.take(array, rows, axis=axis)
    return picked


def _hold_rows(
    judge: Judge, got: Sequence[Arrays], want: Sequence[Arrays], floors: Floors, *, run: str, told: str
) -> None:
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        for name in a:
            what = f"{judge.sides.declared.describe(name)} {told}"
            if a[name].shape != b[name].shape:
                _add_once(judge, name, step, run, f"{what}: {a[name].shape} against {b[name].shape}", ROWS)
                continue
            found = compare(
                a[name], b[name], tensor=name, run=run, step=step, floor=floors.of(name), unit=judge.sides.unit
            )
            judge.compared.append(found)
            if not found.passed:
                _add_once(judge, name, step, run, f"{what}: {found.text()}", ROWS)


ROWS = "an operation over the batch axis (a mean, a broadcast, an index 0, a Reshape that folds it into another)"


def check_determinism(sides: Sides) -> Level:
    """I: every step twice, and the stream in a new session."""
    return _without_failing("I", sides, _check_determinism, "each run twice, and once in a new session")


def _check_determinism(judge: Judge) -> None:
    sides, sizes = judge.sides, judge.sides.declared.sizes
    drawn = draw_stream(sides, "I", sizes, NUM_STEPS)
    first = run_stream(sides, sides.session, drawn, sizes)
    states, twice = sides.declared.zero_states(sizes), list[Arrays]()
    for inputs in drawn:
        once = sides.session.run(inputs | states)
        twice.append(sides.session.run(inputs | states))
        states = sides.follow_graph(states, once)
    _hold_bits(judge, first, twice, run="twice", told="the same inputs do not give the same bits")
    session = GraphSession(sides.declared.path, num_bytes=sides.wiring.num_bytes)
    anew = run_stream(sides, session, drawn, sizes)
    _hold_bits(judge, first, anew, run="new session", told="a new session does not give the same bits")


def _without_failing(letter: str, sides: Sides, law: Callable[[Judge], None], note: str) -> Level:
    """The level, where a graph that does not run is a finding too."""
    judge = Judge(letter=letter, sides=sides)
    try:
        law(judge)
    except RunFailed as error:
        judge.add(
            text=f"the graph does not run through {NUM_STEPS} steps: {error}", likely="what an earlier level found"
        )
    return judge.level(note)


def _hold_bits(judge: Judge, want: Sequence[Arrays], got: Sequence[Arrays], *, run: str, told: str) -> None:
    for step, (a, b) in enumerate(zip(want, got, strict=True)):
        for name in a:
            if not _same_bits(a[name], b[name]):
                differs = f"{_num_different(a[name], b[name])} of {a[name].size} values of"
                text = f"{told}: {differs} {judge.sides.declared.describe(name)} differ"
                _add_once(judge, name, step, run, text, KEPT)


def _same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _num_different(a: Array, b: Array) -> int:
    return int((a != b).sum()) if a.shape == b.shape else a.size


def _add_once(judge: Judge, tensor: str, step: int, run: str, text: str, likely: str) -> None:
    if not any(found.tensor == tensor and found.run == run for found in judge.findings):
        judge.add(tensor=tensor, step=step, run=run, text=text, likely=likely)
