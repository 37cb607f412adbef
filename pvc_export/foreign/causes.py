"""Likely cause of a wrong output: guesses are tried on the arrays and the wiring, and the first that fits is reported.

A guess is an experiment, not a list of words: a swapped state is named only if swapping it back makes it agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from engines.memory import Array

from ..parity.metrics import Difference
from ..report.text import count
from .limits import CEILING, METRICS
from .session import GraphSession, RunFailed
from .states import Declared

QUANTIZED_AT_MOST = 1.0
"""Relative L2 error above which quantization is ruled out as the cause: all zeros would be as close."""
MAX_EXCHANGES = 32
"""Pairs of states to exchange in search of two that the graph confuses."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A wrong output, with both sides' outputs, their inputs, and the comparison."""

    declared: Declared
    session: GraphSession
    tensor: str
    step: int
    got: Mapping[str, Array]
    want: Mapping[str, Array]
    feeds: Mapping[str, Array]
    compared: Callable[[Array, Array], Difference]

    @property
    def own(self) -> tuple[Array, Array]:
        """The wrong output: the graph's, the reference's."""
        return self.got[self.tensor], self.want[self.tensor]

    def agrees(self, got: Array, want: Array) -> bool:
        return got.dtype.kind == want.dtype.kind and self.compared(got, want).passed

    def agrees_fed(self, feeds: Mapping[str, Array], want: Array) -> bool:
        """Whether the graph returns `want` with these feeds replaced. False if it fails on them."""
        try:
            return self.agrees(self.session.run({**self.feeds, **feeds})[self.tensor], want)
        except RunFailed:
            return False


def likely_cause(failure: Failure) -> str:
    """The likely cause, as a clause. Each guess yields its candidates, likeliest first; the first one is returned."""
    guesses = (
        _shape, _not_finite, _constant, _stale, _other_output, _shifted, _one_row_for_all, _unread, _exchanged,
        _quantized, _amplified, _unknown,
    )  # fmt: skip
    return next(said for guess in guesses for said in guess(failure))


def _shape(failure: Failure) -> Iterator[str]:
    got, want = (array.shape for array in failure.own)
    if got == want:
        return
    axes = [axis for axis, (a, b) in enumerate(zip(got, want, strict=False)) if a != b]
    if len(got) == len(want) and len(axes) == 1:
        more = got[axes[0]] - want[axes[0]]
        rows = f"{count(abs(more), 'row')} too {'many' if more > 0 else 'few'} along axis {axes[0]}"
        if failure.declared.state_of(failure.tensor) is None:
            yield f"{rows}: a slice that is off by one, or an axis traced at a constant size"
        yield f"{rows}: an append or a slice that is off by one, or whole states where @append:AXIS expects new rows"
    yield "a different output under that name, or a lost Reshape or Transpose"


def _not_finite(failure: Failure) -> Iterator[str]:
    got, want = failure.own
    if not np.isfinite(want).all():
        yield (
            "inputs that the reference cannot handle: it returns NaN or infinity too, so this proves nothing. "
            "Draw others: --bound INPUT=LOW:HIGH (a mask must leave something visible: --bound mask=1:1)"
        )
    if not np.isfinite(got).all():
        yield "an overflow, or a softmax over masked rows only: add a large negative number, not -infinity"


def _constant(failure: Failure) -> Iterator[str]:
    if not failure.declared.wiring.reads[failure.tensor]:
        yield f"a constant: '{failure.tensor}' depends on no input, so the export folded it into a constant"


def _stale(failure: Failure) -> Iterator[str]:
    state = failure.declared.state_of(failure.tensor)
    if state is None:
        return
    copied = failure.declared.wiring.copies.get(failure.tensor)
    if copied is not None:
        yield f"a stale state: '{failure.tensor}' is wired straight to the input '{copied}'"
    if np.array_equal(failure.got[failure.tensor], failure.feeds[state.input]):
        yield f"a stale state: '{failure.tensor}' is bit-equal to its own input '{state.input}'"


def _other_output(failure: Failure) -> Iterator[str]:
    """All-zero outputs look alike, so only a match with non-zero values counts."""
    got = failure.got[failure.tensor]
    for name, want in failure.want.items():
        if name != failure.tensor and want.any() and failure.agrees(got, want):
            yield f"two swapped outputs: '{failure.tensor}' holds what the reference returns as '{name}'"


def _shifted(failure: Failure) -> Iterator[str]:
    """The right rows at the wrong index: along a growing axis they are off by one, except at the seam."""
    got, want = failure.own
    if got.dtype.kind != "f":
        return
    for axis in range(1, got.ndim):
        if got.shape[axis] < 3:
            continue
        rows = np.moveaxis(got, axis, 0), np.moveaxis(want, axis, 0)
        ahead, behind = failure.agrees(rows[0][1:], rows[1][:-1]), failure.agrees(rows[0][:-1], rows[1][1:])
        if ahead or behind:
            where = "before" if ahead else "after"
            yield f"rows off by one along axis {axis}: each row holds the values of the row {where} it"


def _one_row_for_all(failure: Failure) -> Iterator[str]:
    """Rows of a batch that are not independent: the last row agrees when run alone, but not within the batch."""
    got, want = failure.own
    axis = failure.declared.batch_axis(failure.tensor)
    axis = 0 if axis is None and failure.declared.batch and got.ndim else axis
    if axis is None or got.shape[axis] < 2:
        return
    if failure.agrees(got, np.repeat(np.take(want, [0], axis=axis), got.shape[axis], axis=axis)):
        yield f"row 0 of the batch used for all: every row of '{failure.tensor}' holds the values of the first"
    axes = {name: failure.declared.batch_axis(name) for name in failure.feeds}
    last = {name: np.take(failure.feeds[name], [-1], i) for name, i in axes.items() if i is not None}
    together, alone = (np.take(array, [-1], axis=axis) for array in (got, want))
    if not failure.agrees(together, alone) and failure.agrees_fed(last, alone):
        yield f"a batch row that sees another row: run alone, the last row of '{failure.tensor}' agrees"


def _unread(failure: Failure) -> Iterator[str]:
    """An input that no output depends on, or a state that its own output does not depend on."""
    reads, states = failure.declared.wiring.reads, [pair.input for pair in failure.declared.states]
    ever = frozenset().union(*reads.values())
    if never := [name for name in (*states, *failure.feeds) if name not in ever]:
        kind = "state input" if never[0] in states else "input"
        yield f"a {kind} that the graph never reads: no output depends on '{never[0]}'"
    own = failure.declared.state_of(failure.tensor)
    if own is not None and own.input not in reads[failure.tensor]:
        yield f"a state that is not read: '{failure.tensor}' does not depend on '{own.input}', the state it continues"


def _exchanged(failure: Failure) -> Iterator[str]:
    """Two states of the same shape and dtype that the graph reads swapped: exchanging them makes it agree."""
    feeds, (_, want) = failure.feeds, failure.own
    pairs = combinations([pair.input for pair in failure.declared.states], 2)
    alike = [(a, b) for a, b in pairs if feeds[a].shape == feeds[b].shape and feeds[a].dtype == feeds[b].dtype]
    for a, b in alike[:MAX_EXCHANGES]:
        if not np.array_equal(feeds[a], feeds[b]) and failure.agrees_fed({a: feeds[b], b: feeds[a]}, want):
            yield f"two swapped states: the graph reads '{a}' where '{b}' belongs; with the two exchanged, it agrees"


def _quantized(failure: Failure) -> Iterator[str]:
    """Rounding to 8 bits is not a fault but looks like one. Only the graph's author knows what error is acceptable."""
    declared = failure.declared
    found = failure.compared(*failure.own)
    if declared.wiring.quantized and set(found.limits) == set(METRICS) and found.rel_l2 < QUANTIZED_AT_MOST:
        yield (
            f"quantized operators ({', '.join(declared.wiring.quantized)}), which round more coarsely than float. Set "
            f"an acceptable error, here above {found.rel_l2:.1g}: --tolerance rel_l2=LIMIT"
        )


def _amplified(failure: Failure) -> Iterator[str]:
    found = failure.compared(*failure.own)
    if not found.noise or max(found.limits.values()) < CEILING:
        return
    yield (
        "a reference that amplifies its own rounding: here its float32 run differs from its float64 run by "
        f"{found.noise['rel_l2']:.1e}, so nothing can be proved. Compare fewer steps: --steps N"
    )


def _unknown(failure: Failure) -> Iterator[str]:
    if failure.step:
        yield (
            "a state read at the wrong place or with the wrong weights, if the step also fails on the reference's "
            "state; otherwise an operation that is less precise in the graph, or a weight that is nearly right"
        )
    wrong = [name for name, want in failure.want.items() if not failure.agrees(failure.got[name], want)]
    if len(wrong) == len(failure.want):
        yield "different weights from those the graph was exported with, or different preprocessing: no output agrees"
    yield f"one weight or operation that feeds only {', '.join(wrong)}: the other outputs agree"
