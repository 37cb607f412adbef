"""A session's notes: its last answers as a short text, kept after their frames have left the model's context."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Said(NamedTuple):
    text: str
    first_s: float
    last_s: float


class Notes:
    """The newest answers, oldest first: "Before: 12 s no; 15-40 s a red ball." Repeated answers are merged."""

    def __init__(self, limit: int) -> None:
        """limit: characters of the whole text; the oldest answers are dropped to fit."""
        self._limit = limit
        self._said: deque[Said] = deque()

    def add(self, text: str, time_s: float) -> None:
        """Add an answer given at time_s."""
        line = " ".join(text.split())
        if self._said and self._said[-1].text == line:
            self._said[-1] = self._said[-1]._replace(last_s=time_s)
        else:
            self._said.append(Said(line, time_s, time_s))
        while self._said and len(self.text) > self._limit:
            self._said.popleft()

    @property
    def text(self) -> str:
        """The notes; empty before the first answer, and if not even one fits."""
        return f"Before: {'; '.join(map(_told, self._said))}." if self._said else ""

    def clear(self) -> None:
        self._said.clear()


def _told(said: Said) -> str:
    first, last = round(said.first_s), round(said.last_s)
    return f"{first} s {said.text}" if first == last else f"{first}-{last} s {said.text}"
