"""One run of a level: compares the graph's outputs with the expected ones, and diagnoses faults.

Note: a level ends with faults, not with an exception. Every check that can still run after a fault does, so that a
report shows how far the fault reaches. Only an unusable reference raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from ..parity.fault import Fault
from ..parity.levels import heading
from ..parity.limits import NoiseTable
from ..parity.metrics import Difference
from ..parity.places import Place, PlaceKind
from ..parity.state.trial import NotExecuted
from .causes import Failure, likely_cause
from .findings import Findings
from .session import RunFailed
from .sides import NUM_RULE_STEPS, Arrays, Sides

OWN, FORCED = "own state", "reference's state"
KEPT = "something kept between runs: in the graph (a random or stateful operator) or in the session"
REPORTED_STEP = "On the reference's state, that step is wrong too, so the step itself is wrong."
REPORTED_GROWTH = "On the reference's state, that step is right, so only the accumulated state is wrong."


@dataclass(slots=True)
class Run:
    """A run of a graph. Each output's fault is reported once.

    kind    kind of the places where it compares
    narrow  the option that restricts a check so that this run is left out
    noise   noise floor of every output so far
    shown   what teacher forcing shows about a wrong output, if that is known in advance
    forced  the run on the reference's state, which shows it otherwise
    ended   whether the graph failed, or its state has another shape
    wrong   the outputs that differed at the last step
    """

    level: str
    sides: Sides
    name: str = ""
    kind: PlaceKind = "step"
    narrow: str = ""
    noise: NoiseTable = field(default_factory=lambda: NoiseTable([]))
    shown: str = ""
    forced: Run | None = None
    ended: bool = False
    wrong: set[str] = field(default_factory=set)
    differences: list[Difference] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def found(self) -> Findings:
        return Findings(differences=tuple(self.differences), diagnosed=tuple(self.faults))

    def step(
        self, step: int, feeds: Arrays, want: Arrays, exact: Arrays | None, *, cause: str, failing: str = ""
    ) -> Arrays:
        """Run the graph and compare its outputs with the reference's, in float32 and float64. Returns the outputs, or
        an empty dict once the run has ended.

        failing, cause  message and likely cause if the graph fails on these feeds
        """
        self.noise.add(self.sides.judge.floors(want, exact))
        if self.ended:
            return {}
        try:
            got = self.sides.session.run(feeds)
        except RunFailed as error:
            self.end(step, f"{failing or f'the graph fails on {fed(feeds)}'}: {error}", cause)
            return {}
        self.hold(step, got, want, feeds=feeds)
        # If the reference's shape differs, the graph's output is wrong and not its declaration.
        for name, why in self.sides.declared.untrue_shapes(feeds, got).items():
            if got[name].shape == want[name].shape:
                self.sides.streamed.untrue.setdefault(name, why)
        return got

    def hold(
        self, step: int, got: Arrays, want: Arrays, *, feeds: Arrays | None = None, told: str = "", cause: str = ""
    ) -> None:
        """Compare every output.

        feeds  both sides' inputs, in which the likely cause is searched; without them, `cause` is the cause
        told   what is wrong with an output, put before the numbers
        """
        declared, session, self.wrong = self.sides.declared, self.sides.session, set()
        where, judge = self._place(step), self.sides.judge
        for name, expected in want.items():
            compared = partial(judge.compare, tensor=name, where=where, noise=self.noise)
            found = compared(got[name], expected)
            self.differences.append(found)
            if found.passed:
                continue
            self.wrong.add(name)
            if self.is_news(name):
                if feeds is not None:
                    cause = likely_cause(Failure(declared, session, name, step, got, want, feeds, compared))
                self._add(step, f"{declared.describe(name)}{told}: {found.numbers()}", cause, tensor=name)

    def is_news(self, tensor: str) -> bool:
        return all(fault.part != tensor for fault in self.faults)

    def end(self, step: int, what: str, cause: str) -> None:
        self.ended = True
        self._add(step, what, cause)

    def _place(self, step: int) -> Place:
        return Place(self.kind, step, f"step {step}", self.name)

    def _add(self, step: int, what: str, cause: str, *, tensor: str | None = None) -> None:
        where = self._place(step)
        self.faults.append(
            Fault(
                kind="stopped" if tensor is None else "row",
                part=tensor or "",
                about=str(where),
                what=what,
                level=self.level,
                where=where,
                shown=self._forced(tensor),
                cause=cause,
                narrow=self.narrow,
            )
        )

    def _forced(self, tensor: str | None) -> str:
        """What the reference's state as input shows about an output."""
        if tensor is None or self.forced is None:
            return self.shown if tensor else ""
        if self.forced.ended:
            return ""
        return REPORTED_STEP if tensor in self.forced.wrong else REPORTED_GROWTH


def judged(level: str, sides: Sides, check: Callable[[Sides], Iterator[Findings]]) -> Findings:
    """The findings of `check`, part by part. A graph that fails unexpectedly is a fault too.

    Faults are sorted by step, then by the file's order of outputs, with the stream's own run first.
    """
    found = Findings()
    try:
        for part in check(sides):
            found += part
    except NotExecuted as reason:
        return replace(found, not_executed={heading(level): str(reason)})
    except RunFailed as error:
        what = f"the graph does not run through {NUM_RULE_STEPS} steps: {error}"
        told = Fault(kind="stopped", part="", about="", what=what, level=level, cause="a fault of an earlier level")
        found += Findings(diagnosed=(told,))
    outputs = [port.name for port in sides.declared.outputs]

    def place(one: Fault) -> tuple[int, int, bool]:
        step, run = (-1, "") if one.where is None else (one.where.index, one.where.run)
        return step, outputs.index(one.part) if one.part in outputs else -1, run == FORCED

    return replace(found, diagnosed=tuple(sorted(found.diagnosed, key=place)))


def fed(feeds: Arrays) -> str:
    """Names and shapes of the inputs, for an error message."""
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
