"""What a rung answered to the held-out questions (words/held_out.py), and what of it is a fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_AGREEMENT = 0.995
WORLD = "shapes"
"""The world whose questions are known: what a checkpoint was trained on, by its config.json."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """An answer that is not the reference's.

    step    the first token that differs
    margin  logits of the reference between its own token there and the other one; tie: what is still rounding
    """

    topic: str
    question: str
    expected: str
    step: int
    margin: float
    tie: float

    @property
    def is_fault(self) -> bool:
        return not self.margin <= self.tie  # NaN as well


@dataclass(frozen=True, kw_only=True, slots=True)
class RungAnswers:
    """One rung: questions and right answers by topic, and every answer that differs from the reference's."""

    rung: str
    right: Mapping[str, int]
    count: Mapping[str, int]
    changed: tuple[Changed, ...]

    @property
    def num_questions(self) -> int:
        return sum(self.count.values())

    @property
    def accuracy(self) -> float:
        return sum(self.right.values()) / self.num_questions

    @property
    def agreement(self) -> float:
        return 1 - len(self.changed) / self.num_questions

    def faults(self) -> list[str]:
        """What fails the gate, in words."""
        found = [
            f"{self.rung}: {change.question!r} is no longer answered {change.expected!r}: another token {change.step} "
            f"wins by {change.margin:.2g} logits of the reference, more than {change.tie:.1e}"
            for change in self.changed
            if change.is_fault
        ]
        if self.agreement < MIN_AGREEMENT:
            found.append(
                f"{self.rung}: {self.agreement:.2%} of {self.num_questions} answers are the reference's, expected "
                f"{MIN_AGREEMENT:.1%} at least"
            )
        return found

    def line(self) -> str:
        """For people: accuracy and agreement, and the closest call among what changed."""
        widest = max((change.margin for change in self.changed), default=0.0)
        changes = f"   {len(self.changed)} changed, by at most {widest:.1e} logits" if self.changed else ""
        verdict = "FAIL" if self.faults() else "ok  "
        right = f"{self.accuracy:.1%} of {self.num_questions} right"
        return f"  {verdict} {self.rung:<12} {right}   {self.agreement:.2%} as the reference{changes}"

    def to_json(self) -> dict[str, Any]:
        return {
            "rung": self.rung,
            "num_questions": self.num_questions,
            "accuracy": round(self.accuracy, 5),
            "agreement": round(self.agreement, 5),
            "accuracy_by_topic": {
                topic: round(self.right[topic] / count, 5) for topic, count in sorted(self.count.items())
            },
            "changed": [
                {name: getattr(change, name) for name in Changed.__slots__} | {"is_fault": change.is_fault}
                for change in self.changed
            ],
        }
