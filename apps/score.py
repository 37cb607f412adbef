"""Grading of answers for a source that knows its scenes, and the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .synthetic import KnownScene


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """The grade of an answer.

    truth     the right answer; None if unknown, or not known yet: a scene is asked about at its end
    is_right  whether the answer equals it; None if it does not count
    topic     topic of a question that came from the source
    """

    truth: str | None = None
    is_right: bool | None = None
    topic: str | None = None


def grade(text: str, scene: KnownScene | None, *, counts: bool) -> Grade:
    """Grade an answer. `scene`: scene of the frame the question was asked at. `counts`: the model had a fair chance."""
    if scene is None or not scene.is_last:
        return Grade()
    is_right = text.strip() == scene.answer if counts and scene.answer is not None else None
    return Grade(truth=scene.answer, is_right=is_right, topic=scene.topic)


class Score:
    """Counts graded answers, in total and by topic. Right means equal text."""

    def __init__(self) -> None:
        self.num_right = self.num_graded = 0
        self._by_topic: dict[str, dict[str, int]] = {}

    def add(self, grade: Grade) -> None:
        """Count an answer, unless it is excluded from grading."""
        if grade.is_right is None:
            return
        self.num_graded += 1
        self.num_right += grade.is_right
        if grade.topic is not None:
            topic = self._by_topic.setdefault(grade.topic, {"num_right": 0, "num_graded": 0})
            topic["num_graded"] += 1
            topic["num_right"] += grade.is_right

    @property
    def accuracy(self) -> float | None:
        """0 to 1; None before the first grade."""
        return self.num_right / self.num_graded if self.num_graded else None

    def text(self) -> str:
        """'right 17 of 20, 85 %'; empty before the first grade."""
        return f"right {share(self.num_right, self.num_graded)}" if self.num_graded else ""

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "num_right": self.num_right,
            "num_graded": self.num_graded,
            "accuracy": self.accuracy,
            "by_topic": dict(sorted(self._by_topic.items())),
        }


def share(num_right: int, num_graded: int) -> str:
    """'17 of 20, 85 %', rounded down, so that 100 % means all of them."""
    return f"{num_right} of {num_graded}, {100 * num_right // num_graded} %"
