"""The result of a step: a section of the page and of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

State = Literal["shown", "failed", "refused", "not executed", "stand-in"]
"""shown         it ran, and its results are true of this machine
failed        it ran, and its results are wrong
refused       a runtime, the driver or the card ended it: by an error, a crash, or the time limit
not executed  it was not started; `error` is the reason
stand-in      it ran on a stand-in for a GPU, in tests: nothing in it is a measurement of a GPU
"""
STATES: tuple[State, ...] = get_args(State)
STAND_IN = "stand-in: no GPU ran this"
NO_GPU = "no NVIDIA GPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One measurement. `share` is its fraction of a measured peak, 0 to 1, and `share_of` names that peak.

    measured_on  the card, or STAND_IN, so that a number copied out of the file still names its source
    """

    name: str
    value: float
    unit: str
    share: float | None = None
    share_of: str = ""
    measured_on: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The result of one step.

    name     name of the step, such as 'golden:rtx-fp16'
    does     a sentence that describes the step, whether or not it ran
    command  the command to run the step by hand, if there is one
    facts    results as text, in order
    data     the same for programs, with more detail
    error    why it was refused, failed or not executed
    fix      the next command, if something is missing
    """

    name: str
    title: str
    state: State
    does: str
    command: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    numbers: tuple[Number, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    fix: str = ""

    @property
    def is_good(self) -> bool:
        """Whether steps that depend on it may run."""
        return self.state in ("shown", "stand-in")

    def measured(self, on: str) -> Section:
        """The section with the card's name in every number. A stand-in's section is marked as such."""
        state: State = "stand-in" if on == STAND_IN and self.state == "shown" else self.state
        return replace(self, state=state, numbers=tuple(replace(one, measured_on=on) for one in self.numbers))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Section:
        """Read a section from another process or from a file."""
        facts = tuple((name, text) for name, text in data["facts"])
        numbers = tuple(Number(**number) for number in data["numbers"])
        return Section(**{**data, "facts": facts, "numbers": numbers})


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Findings of a step, before they become a section. state: 'shown', 'failed' if the results are wrong, or 'refused'
    if a runtime is installed but does not accept the card."""

    facts: tuple[tuple[str, str], ...] = ()
    numbers: tuple[Number, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    state: State = "shown"
    error: str = ""
    fix: str = ""
