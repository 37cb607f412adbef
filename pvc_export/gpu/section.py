"""What a step of the run leaves: a section of the page, and of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

State = Literal["shown", "failed", "refused", "not executed", "stand-in"]
"""shown         it ran, and what it holds is true of this machine
failed        it ran, and what it returned is wrong
refused       a runtime, the driver or the card ended it: an error, a crash, or the time limit
not executed  it was not begun, and `error` says why
stand-in      a stand-in for a GPU ran it, in tests: nothing in it is a measurement of a GPU
"""
STATES: tuple[State, ...] = get_args(State)
STAND_IN = "stand-in: no GPU ran this"
NO_GPU = "no NVIDIA GPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One measurement. `share` is its part of a measured peak, 0 to 1, and `share_of` names that peak.

    measured_on  the card, or STAND_IN: a number that is copied out of the file still says what it is of
    """

    name: str
    value: float
    unit: str
    share: float | None = None
    share_of: str = ""
    measured_on: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """name     of the step: 'golden:rtx-fp16'
    does     what the step does, in a sentence, done or not
    command  the same by hand, where there is such a command
    facts    in words, in their order; data: the same for machines, with more in it
    error    why it was refused, failed or not executed
    fix      the next command, where something is missing
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
        """Whether what needs it may go on."""
        return self.state in ("shown", "stand-in")

    def measured(self, on: str) -> Section:
        """With the card's name in every number. A stand-in's sections are called what they are."""
        state: State = "stand-in" if on == STAND_IN and self.state == "shown" else self.state
        return replace(self, state=state, numbers=tuple(replace(one, measured_on=on) for one in self.numbers))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Section:
        """Of another process, or of a file."""
        facts = tuple((name, text) for name, text in data["facts"])
        numbers = tuple(Number(**number) for number in data["numbers"])
        return Section(**{**data, "facts": facts, "numbers": numbers})


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What the work of a step returns, before it has a name. state: 'shown', or 'failed' where it looked and it is
    wrong, or 'refused' where a runtime is there and does not take the card."""

    facts: tuple[tuple[str, str], ...] = ()
    numbers: tuple[Number, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    state: State = "shown"
    error: str = ""
    fix: str = ""
