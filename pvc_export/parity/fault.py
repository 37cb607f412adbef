"""One thing that is wrong: what every report of a check is made of, of a bundle and of a graph of any origin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .levels import heading
from .places import Place

FaultKind = Literal["weights", "row", "missing", "stopped", "token", "conversation", "answer", "rule", "drift"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is wrong, and what is known of it alone.

    part    what of its kind it belongs to: the graph of weights, the kind of a prompt, a rung, a rule's name, a tensor
    about   the same in words, for a line of its own;  what  what is wrong with it
    level, where   of the ladder, and the place there; empty and None where another record says so
    shown   what feeding the reference's state showed;  cause  the likely one. Both may be empty
    narrow  the option that leaves this fault out of a check, if there is one
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
        """Where, and what: of a list of one level's."""
        return f"{self.about}: {self.what}" if self.about else self.what

    @property
    def text(self) -> str:
        """All of it, on one line."""
        line = f"level {heading(self.level, ', ')}: {self.line}" if self.level else self.line
        return ". ".join(filter(None, (line, self.shown.rstrip("."), self.cause and f"Likely {self.cause}")))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"where": None if self.where is None else str(self.where)}
