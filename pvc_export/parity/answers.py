"""Answers and their faults: to the prompts of every check, and to held-out questions on every rung."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .places import Rung

MIN_AGREEMENT = 0.995
MIN_AGREEMENT_INT8 = 0.98
"""For matmuls that round their inputs to int8, where a last bit changes an answer more easily."""
ROUNDING_EXPLAINS = "rounding explains at most"
WORLD = "shapes"
"""The training data with known questions and answers, as a checkpoint's config.json names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """At one step, a token among the bundle's k likeliest that is not among the reference's.

    margin  the reference's logits between this token and its k-th;  tie  the largest margin of a near tie
    """

    step: int
    k: int
    margin: float
    tie: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Parting:
    """The first difference from the reference's answer: the bundle's token there, and the reference's.

    margin  the reference's logits between its likeliest token and the bundle's; infinite if an answer exceeds the
            requested length. The likeliest token may not be `expected`: the reference decodes with a cache and scores
            without one, and in a near tie the two may choose differently
    tie     the largest margin of a near tie
    """

    said: str
    expected: str
    margin: float
    tie: float

    @property
    def is_fault(self) -> bool:
        return not self.margin <= self.tie  # also true for NaN


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One prompt, answered by the bundle and by the reference (words/conversations.py, words/stories.py).

    num_tokens, num_said   length of the reference's greedy answer, and of the bundle's
    prefix                 number of equal tokens before the first difference
    parting                the first difference; None if the answers are equal
    text, reference_text   the bundle's answer as a user reads it, and the reference's answer, decoded by its tokenizer
    num_steps              steps scored with the same answer fed to both
    max_kl, mean_kl        KL(reference || bundle) over these steps, in nats
    scaled_kl              the largest KL divided by the mean square of the reference's logits at its step. This has the
                           limit, because with larger logits the same relative error gives a larger KL
    flips                  tokens that are the bundle's likeliest, or among its five likeliest, but not the reference's
    """

    kind: str
    question: str
    num_tokens: int
    num_said: int
    prefix: int
    parting: Parting | None
    text: str
    reference_text: str
    num_steps: int
    max_kl: float
    mean_kl: float
    scaled_kl: float
    flips: tuple[Flip, ...]

    @property
    def equal(self) -> bool:
        """Whether the answers are equal token by token."""
        return self.parting is None

    def fault(self, kl_limit: float) -> str | None:
        """What is wrong, in words; None if nothing is."""
        if not self.scaled_kl <= kl_limit:  # also true for NaN
            return f"KL / mean square of the logits is {self.scaled_kl:.1e} (limit {kl_limit:.1e})"
        for flip in self.flips:
            if flip.margin > flip.tie:
                rank = "as the likeliest" if flip.k == 1 else f"among the {flip.k} likeliest"
                return (
                    f"at token {flip.step} the bundle has another token {rank}; the reference prefers its own by "
                    f"{flip.margin:.2g} logits ({ROUNDING_EXPLAINS} {flip.tie:.1e})"
                )
        if (parting := self.parting) is not None and parting.is_fault:
            return (
                f"at token {self.prefix} the bundle has {parting.said!r}, the reference {parting.expected!r}; "
                f"the reference prefers its likeliest token by {parting.margin:.2g} logits "
                f"({ROUNDING_EXPLAINS} {parting.tie:.1e})"
            )
        return None

    def num_same(self, k: int) -> int:
        """Steps with the same k likeliest tokens."""
        return self.num_steps - sum(flip.k == k for flip in self.flips)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """An answer that differs from the reference's.

    step    the first token that differs
    margin  the reference's logits between its token there and the other one;  tie  the most that rounding explains
    """

    topic: str
    question: str
    expected: str
    step: int
    margin: float
    tie: float

    @property
    def is_fault(self) -> bool:
        return not self.margin <= self.tie  # also true for NaN


@dataclass(frozen=True, kw_only=True, slots=True)
class RungAnswers:
    """The answers of one rung: questions and right answers by topic, every answer that differs from the reference's,
    and the fraction that must agree with it."""

    rung: Rung
    right: Mapping[str, int]
    count: Mapping[str, int]
    changed: tuple[Changed, ...]
    least_agreement: float = MIN_AGREEMENT

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
        """The faults, in words."""
        found = [
            f"the answer to {change.question!r} is no longer {change.expected!r}: at token {change.step} the reference "
            f"prefers its own token by {change.margin:.2g} logits ({ROUNDING_EXPLAINS} {change.tie:.1e})"
            for change in self.changed
            if change.is_fault
        ]
        if self.agreement < self.least_agreement:
            found.append(
                f"{self.agreement:.2%} of {self.num_questions} answers equal the reference's, expected at least "
                f"{self.least_agreement:.1%}"
            )
        return found

    def line(self) -> str:
        """A line for people: accuracy, agreement, and the largest margin among the changed answers."""
        widest = max((change.margin for change in self.changed), default=0.0)
        changes = f"   {len(self.changed)} changed, by at most {widest:.1e} logits" if self.changed else ""
        verdict = "FAIL" if self.faults() else "ok  "
        right = f"{self.accuracy:.1%} of {self.num_questions} right"
        return f"  {verdict} {self.rung!s:<12} {right}   {self.agreement:.2%} as the reference{changes}"

    def to_json(self) -> dict[str, Any]:
        return {
            "rung": str(self.rung),
            "num_questions": self.num_questions,
            "accuracy": round(self.accuracy, 5),
            "agreement": round(self.agreement, 5),
            "accuracy_by_topic": {
                topic: round(self.right[topic] / count, 5) for topic, count in sorted(self.count.items())
            },
            "changed": [asdict(change) | {"is_fault": change.is_fault} for change in self.changed],
        }
