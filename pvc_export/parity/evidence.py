"""Evidence of a check: every step returns its own, and `+` joins them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from engines.manifest import Manifest

from .answers import Conversation, RungAnswers
from .heat import HeatMap
from .levels import Rule
from .metrics import Difference
from .value_states import of_values

Found = TypeVar("Found", bound="Evidence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Findings of one step, or of several together.

    differences    every compared tensor, in every run
    missing        outputs of the graphs that the stream never produced
    num_weights    weights that are in place in the graphs, bit for bit
    wrong_weights  graph -> weights that are not, and what is wrong with each
    num_tokens     tokens of the greedy answer;  num_equal_tokens  those that are also the reference's choice
    wrong_tokens   tokens that rounding does not explain, in words
    rules          requirements that hold bit for bit or not at all: state, batch, determinism, pixels
    conversations  the prompts of every check;  answers  held-out questions, on every rung
    not_executed   what could not run, and why; never counts as a pass
    heat           the worst frames, token by token, for figures
    stopped        the runtime's error if a graph returned NaN, which ends the stream and the check
    """

    differences: tuple[Difference, ...] = ()
    missing: tuple[str, ...] = ()
    num_weights: int = 0
    wrong_weights: dict[str, dict[str, str]] = field(default_factory=dict)
    num_tokens: int = 0
    num_equal_tokens: int = 0
    wrong_tokens: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    answers: tuple[RungAnswers, ...] = ()
    not_executed: dict[str, str] = field(default_factory=dict)
    heat: tuple[HeatMap, ...] = ()
    stopped: str = ""

    def __add__(self: Found, other: Found) -> Found:
        joined, more = self.parts(), other.parts()
        for name, part in joined.items():
            joined[name] = part | more[name] if isinstance(part, dict) else part + more[name]
        return type(self)(**joined)

    def parts(self) -> dict[str, Any]:
        """Field name -> value, for a report that builds on it."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def never_seen(evidence: Evidence, manifest: Manifest) -> Evidence:
    """Find outputs of a bundle's graphs that were never compared. Codes and scales are compared as values."""
    seen = {one.name for one in evidence.differences}
    specs = [of_values(spec) for spec in manifest.graphs.values()]
    outputs = {f"{spec.name}/{tensor.name}" for spec in specs for tensor in spec.outputs}
    return Evidence(missing=tuple(sorted(outputs - seen)))
