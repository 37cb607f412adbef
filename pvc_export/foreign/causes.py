"""Why an output may be wrong: guesses are tried on the arrays and the wiring at hand, and the first that fits is told.

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
"""Relative L2 beyond which no quantization is what makes an output wrong: it is as far off as zeros would be."""
MAX_EXCHANGES = 32
"""Pairs of states that are exchanged in search of the two that a graph confuses."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An output that is off: what both sides returned, what they were fed, and how the two are compared."""

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
        """The output itself, of the graph and of the reference."""
        return self.got[self.tensor], self.want[self.tensor]

    def agrees(self, got: Array, want: Array) -> bool:
        return got.dtype.kind == want.dtype.kind and self.compared(got, want).passed

    def agrees_fed(self, feeds: Mapping[str, Array], want: Array) -> bool:
        """Whether the graph, fed otherwise, returns what it should be. A graph that fails on it does not."""
        try:
            return self.agrees(self.session.run({**self.feeds, **feeds})[self.tensor], want)
        except RunFailed:
            return False


def likely_cause(failure: Failure) -> str:
    """A clause that goes on after 'Likely'. Each guess yields what fits, the likelier first; no more is tried then."""
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
            yield f"{rows}: a slice that is off by one, or an axis that was traced at a constant size"
        yield f"{rows}: an append or a slice that is off by one, or whole states where @append:AXIS expects new rows"
    yield "another output of that name, or a Reshape or Transpose that was lost"


def _not_finite(failure: Failure) -> Iterator[str]:
    got, want = failure.own
    if not np.isfinite(want).all():
        yield (
            "inputs that the reference cannot take, since it returns NaN or infinity itself, and that proves nothing. "
            "Draw others: --bound INPUT=LOW:HIGH (a mask must leave something to see: --bound mask=1:1)"
        )
    if not np.isfinite(got).all():
        yield "an overflow, or a softmax over nothing but masked rows: add a large negative number, not -infinity"


def _constant(failure: Failure) -> Iterator[str]:
    if not failure.declared.wiring.reads[failure.tensor]:
        yield f"that '{failure.tensor}' depends on no input at all: it was folded into a constant by the export"


def _stale(failure: Failure) -> Iterator[str]:
    state = failure.declared.state_of(failure.tensor)
    if state is None:
        return
    copied = failure.declared.wiring.copies.get(failure.tensor)
    if copied is not None:
        yield f"a stale state: '{failure.tensor}' is wired straight to the input '{copied}'"
    if np.array_equal(failure.got[failure.tensor], failure.feeds[state.input]):
        yield f"a stale state: '{failure.tensor}' holds the bits of its own input '{state.input}', unchanged"


def _other_output(failure: Failure) -> Iterator[str]:
    """Zeros look alike, so a match must hold something."""
    got = failure.got[failure.tensor]
    for name, want in failure.want.items():
        if name != failure.tensor and want.any() and failure.agrees(got, want):
            yield f"two outputs that are swapped: '{failure.tensor}' holds what the reference calls '{name}'"


def _shifted(failure: Failure) -> Iterator[str]:
    """The right rows at the wrong index: along a growing axis they are one off, but for those at the seam."""
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
            yield f"rows that are off by one along axis {axis}: each holds what belongs one {where} it"


def _one_row_for_all(failure: Failure) -> Iterator[str]:
    """The last row of the batch, run alone, agrees; together it does not."""
    got, want = failure.own
    axis = failure.declared.batch_axis(failure.tensor)
    axis = 0 if axis is None and failure.declared.batch and got.ndim else axis
    if axis is None or got.shape[axis] < 2:
        return
    if failure.agrees(got, np.repeat(np.take(want, [0], axis=axis), got.shape[axis], axis=axis)):
        yield f"row 0 of the batch for all: every row of '{failure.tensor}' holds what belongs to the first"
    axes = {name: failure.declared.batch_axis(name) for name in failure.feeds}
    last = {name: np.take(failure.feeds[name], [-1], i) for name, i in axes.items() if i is not None}
    together, alone = (np.take(array, [-1], axis=axis) for array in (got, want))
    if not failure.agrees(together, alone) and failure.agrees_fed(last, alone):
        yield f"a row of the batch that sees another: alone, the last row of '{failure.tensor}' agrees"


def _unread(failure: Failure) -> Iterator[str]:
    """A state that no output can depend on, or not this one, though the state is there to be seen."""
    reads, states = failure.declared.wiring.reads, [pair.input for pair in failure.declared.states]
    ever = frozenset().union(*reads.values())
    if never := [name for name in (*states, *failure.feeds) if name not in ever]:
        kind = "state input" if never[0] in states else "input"
        yield f"that the graph never reads its {kind} '{never[0]}': no output depends on it"
    own = failure.declared.state_of(failure.tensor)
    if own is not None and own.input not in reads[failure.tensor]:
        yield f"that '{failure.tensor}' does not depend on '{own.input}', the state that it continues"


def _exchanged(failure: Failure) -> Iterator[str]:
    """Two states of one kind that the graph reads in each other's place: fed the other way round, it agrees."""
    feeds, (_, want) = failure.feeds, failure.own
    pairs = combinations([pair.input for pair in failure.declared.states], 2)
    alike = [(a, b) for a, b in pairs if feeds[a].shape == feeds[b].shape and feeds[a].dtype == feeds[b].dtype]
    for a, b in alike[:MAX_EXCHANGES]:
        if not np.array_equal(feeds[a], feeds[b]) and failure.agrees_fed({a: feeds[b], b: feeds[a]}, want):
            yield f"two states that are swapped: the graph reads '{a}' where '{b}' belongs; exchanged, it agrees"


def _quantized(failure: Failure) -> Iterator[str]:
    """Rounding to 8 bits is no fault, but nothing tells it from one: only who made the graph knows what it may cost."""
    declared = failure.declared
    found = failure.compared(*failure.own)
    if declared.wiring.quantized and set(found.limits) == set(METRICS) and found.rel_l2 < QUANTIZED_AT_MOST:
        yield (
            f"quantized operators ({', '.join(declared.wiring.quantized)}), which round by more than float does. Say "
            f"what is good enough, here above {found.rel_l2:.1g}: --tolerance rel_l2=LIMIT"
        )


def _amplified(failure: Failure) -> Iterator[str]:
    found = failure.compared(*failure.own)
    if not found.noise or max(found.limits.values()) < CEILING:
        return
    yield (
        f"that the reference amplifies its own rounding: in float32 it is {found.noise['rel_l2']:.1e} from itself in "
        "float64 here, so nothing can be proved. Compare fewer steps: --steps N"
    )


def _unknown(failure: Failure) -> Iterator[str]:
    if failure.step:
        yield (
            "a state that is read at the wrong place or with the wrong weights, if the reference's state fails there "
            "too; else an operation that is less precise in the graph, or a weight that is nearly right"
        )
    wrong = [name for name, want in failure.want.items() if not failure.agrees(failure.got[name], want)]
    if len(wrong) == len(failure.want):
        yield "other weights than the graph was exported from, or other preprocessing: no output agrees"
    yield f"one weight or operation in what leads to {', '.join(wrong)} alone: the other outputs agree"
