"""One fault: the unit of every report, both of a bundle's check and of a graph of any origin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .levels import heading
from .places import Place

FaultKind = Literal["weights", "row", "missing", "stopped", "token", "conversation", "answer", "rule", "drift"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong, and what is known about it.

    part    the subject: the graph of the weights, the kind of a prompt, a rung, a rule's name, a tensor
    about   the subject in words, readable alone;  what  what is wrong with it
    level, where   level and place of the fault; empty and None if another record has them
    shown   the result of feeding the reference's state;  cause  the likely cause. Both may be empty
    narrow  the option that excludes this fault from a check, if there is one
    """

    kind: FaultKind
    part: str
    about: str
    what: str
    level: str = ""
    where: Place | None = None
    shown: str = ""
    cause: str = ""
    narrow: str = ""

    @property
    def line(self) -> str:
        """Subject and fault, for a list under one level."""
        return f"{self.about}: {self.what}" if self.about else self.what

    @property
    def text(self) -> str:
        """The whole fault on one line."""
        line = f"level {heading(self.level, ', ')}: {self.line}" if self.level else self.line
        return ". ".join(filter(None, (line, self.shown.rstrip("."), self.cause and f"Likely {self.cause}")))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"where": None if self.where is None else str(self.where)}
