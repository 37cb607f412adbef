"""One run of a level: the graph's outputs are held against what they should be, and what is wrong goes into the level.

Note: a level ends with findings, not with an exception. Whatever can still run after a fault does, so that a report
shows how far the fault reaches. Only a reference that cannot be used at all raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..parity.limits import NoiseTable
from ..parity.places import Place
from ..parity.state.trial import NotExecuted
from .causes import Failure, likely_cause
from .report import Finding, Level
from .session import RunFailed
from .sides import NUM_RULE_STEPS, Arrays, Sides

OWN, FORCED = "own state", "reference's state"
KEPT = "something that is kept between runs: in the graph (a random or stateful operator) or in the session"
REPORTED_STEP = "Fed the reference's state, it is wrong at that step too: the step itself is wrong."
REPORTED_GROWTH = "Fed the reference's state, it is right at that step: only what accumulates is wrong."


@dataclass(slots=True)
class Run:
    """A run of a graph that fills a level. A fault is told once for every output.

    axis    whose size is another in this run
    noise   the noise floor of every output so far
    shown   what teacher forcing shows of a wrong output;  forced  the run that was fed the reference's state and knows
    ended   the graph failed, or its state has another shape;  wrong  the outputs that differed at the last step
    """

    level: Level
    sides: Sides
    name: str = ""
    axis: str | None = None
    noise: NoiseTable = field(default_factory=lambda: NoiseTable([]))
    shown: str = ""
    forced: Run | None = None
    ended: bool = False
    wrong: set[str] = field(default_factory=set)

    def step(
        self, step: int, feeds: Arrays, want: Arrays, exact: Arrays | None, *, cause: str, failing: str = ""
    ) -> Arrays:
        """The graph's outputs, held against the reference's in float32 and in float64; none once the run has ended.

        failing, cause  what it means if the graph fails on these feeds, and why that is likely
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
        # Where the reference has another shape, the graph is wrong and not what it declares.
        for name, why in self.sides.declared.untrue_shapes(feeds, got).items():
            if got[name].shape == want[name].shape:
                self.sides.streamed.untrue.setdefault(name, why)
        return got

    def hold(
        self, step: int, got: Arrays, want: Arrays, *, feeds: Arrays | None = None, told: str = "", cause: str = ""
    ) -> None:
        """Compare every output.

        feeds  what both sides were fed: the likely cause is looked for there, unless it is given as `cause`
        told   what is wrong with an output, before the numbers
        """
        declared, session, self.wrong = self.sides.declared, self.sides.session, set()
        where, judge = Place("step", step, run=self.name), self.sides.judge
        for name, expected in want.items():
            compared = partial(judge.compare, tensor=name, where=where, noise=self.noise)
            found = compared(got[name], expected)
            self.level.compared.append(found)
            if found.passed:
                continue
            self.wrong.add(name)
            if self.is_news(name):
                if feeds is not None:
                    cause = likely_cause(Failure(declared, session, name, step, got, want, feeds, compared))
                self.add(step, f"{declared.describe(name)}{told}: {found.numbers()}", cause, tensor=name)

    def is_news(self, tensor: str) -> bool:
        return not any(found.tensor == tensor and found.run == self.name for found in self.level.findings)

    def add(self, step: int, what: str, cause: str, *, tensor: str | None = None) -> None:
        """A finding of this run."""
        self.level.findings.append(
            Finding(
                level=self.level.letter,
                tensor=tensor,
                step=step,
                run=self.name,
                axis=self.axis,
                what=what,
                forced=self._forced(tensor),
                cause=cause,
            )
        )

    def end(self, step: int, what: str, cause: str) -> None:
        self.ended = True
        self.add(step, what, cause)

    def _forced(self, tensor: str | None) -> str:
        """What feeding the reference's state shows of an output."""
        if tensor is None or self.forced is None:
            return self.shown if tensor else ""
        if self.forced.ended:
            return ""
        return REPORTED_STEP if tensor in self.forced.wrong else REPORTED_GROWTH


def judged(letter: str, sides: Sides, check: Callable[[Level, Sides], None]) -> Level:
    """The level that `check` fills. A graph that fails where nothing expects it to is a finding too.

    The first step is told first, and in it the stream's own run and the first output of the file.
    """
    level = Level(letter=letter)
    try:
        check(level, sides)
    except NotExecuted as reason:
        level.not_executed = str(reason)
    except RunFailed as error:
        what = f"the graph does not run through {NUM_RULE_STEPS} steps: {error}"
        level.findings.append(Finding(level=letter, what=what, cause="what an earlier level found"))
    level.findings += [
        Finding(level=letter, run=rule.name, what=rule.detail, cause=KEPT) for rule in level.rules if not rule.passed
    ]
    outputs = [port.name for port in sides.declared.outputs]

    def place(one: Finding) -> tuple[int, int, bool]:
        step = -1 if one.step is None else one.step
        return step, outputs.index(one.tensor) if one.tensor in outputs else -1, one.run == FORCED

    level.findings.sort(key=place)
    return level


def fed(feeds: Arrays) -> str:
    """Names and shapes, for an error."""
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
