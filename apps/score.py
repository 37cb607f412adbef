"""How many answers were right, where the source knows the truth."""

from __future__ import annotations

from typing import Any

from .watcher import Reply


class Score:
    """Counts graded answers, altogether and by topic. Right is equal text."""

    def __init__(self) -> None:
        self.num_right = self.num_graded = 0
        self._by_topic: dict[str, dict[str, int]] = {}

    def add(self, reply: Reply) -> None:
        """Count an answer; one without a grade changes nothing."""
        if reply.is_right is None:
            return
        self.num_graded += 1
        self.num_right += reply.is_right
        if reply.topic is not None:
            topic = self._by_topic.setdefault(reply.topic, {"num_right": 0, "num_graded": 0})
            topic["num_graded"] += 1
            topic["num_right"] += reply.is_right

    @property
    def accuracy(self) -> float | None:
        """0 to 1; None before the first grade."""
        return self.num_right / self.num_graded if self.num_graded else None

    def text(self) -> str:
        """'right 17 of 20, 85 %'; empty before the first grade."""
        return f"right {share(self.num_right, self.num_graded)}" if self.num_graded else ""

    def summary(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "num_right": self.num_right,
            "num_graded": self.num_graded,
            "accuracy": self.accuracy,
            "by_topic": dict(sorted(self._by_topic.items())),
        }


def share(num_right: int, num_graded: int) -> str:
    """'17 of 20, 85 %', rounded down, so that 100 % means all of them."""
    return f"{num_right} of {num_graded}, {100 * num_right // num_graded} %"
