"""The page's state for a new viewer: everything except the picture."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..figures import Figures
from ..listeners import Event
from ..overlay import Status
from .history import History

KEPT_ANSWERS, KEPT_EVENTS = 100, 300
LONGEST_TEXT = 4000


@dataclass(kw_only=True, slots=True)
class State:
    """The state. Each method returns the change to send to viewers; None if nothing changed.

    conversation  answers with their questions, newest last; an entry is also an event
    open_alerts   alerts that have begun and not ended, by pattern
    """

    status: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | None = None
    figures: dict[str, Any] | None = None
    conversation: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_ANSWERS))
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    open_alerts: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    num_events: int = 0
    ended: bool = False

    def see(self, status: Status) -> dict[str, Any] | None:
        return self._change(
            question=status.question[:LONGEST_TEXT],
            notice=status.notice,
            random_weights=status.random_weights,
            grade=_grade(status),
        )

    def say(self, question: str, text: str) -> dict[str, Any]:
        self.answer = {"question": question[:LONGEST_TEXT], "text": text[:LONGEST_TEXT], "done": False}
        return self.answer

    def happen(self, event: Event) -> dict[str, Any]:
        self.num_events += 1
        told = event.to_json() | {"id": self.num_events}
        if event.kind == "answer":
            question, text = event.question or "", event.answer or event.text
            self.answer = {"question": question, "text": text[:LONGEST_TEXT], "done": True, "frame": event.frame}
            self.conversation.append(told)
        else:
            self.events.append(told)
        if event.alert is not None and event.kind == "alert":
            self.open_alerts[event.alert] = told
        if event.alert is not None and event.kind == "alert-end":
            self.open_alerts.pop(event.alert, None)
        if event.kind == "reset":
            self.conversation.clear()
            self.answer = None
        self.ended = event.kind == "end"
        return told

    def count(self, figures: Figures) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The change of the status, and the sample of a finished second with all figures."""
        self.figures = figures.to_json()
        status = self._change(source=figures.source, paused=figures.paused, still=figures.still)
        sample = self.history.add(figures)
        return status, None if sample is None else {"sample": sample, "now": self.figures}

    def to_json(self) -> dict[str, Any]:
        """The state as JSON; lists are copied, and their entries no longer change."""
        return {
            "status": dict(self.status),
            "answer": self.answer,
            "now": self.figures,
            "conversation": list(self.conversation),
            "events": list(self.events),
            "open_alerts": list(self.open_alerts.values()),
            "history": list(self.history.samples),
            "num_events": self.num_events,
            "ended": self.ended,
        }

    def _change(self, **fields: Any) -> dict[str, Any] | None:
        changed = self.status | fields
        if changed == self.status:
            return None
        self.status = changed
        return changed


def _grade(status: Status) -> dict[str, Any] | None:
    """The newest answer's grade, if the source knows the truth."""
    reply = status.reply
    if reply is None or reply.grade.truth is None:
        return None
    grade = reply.grade
    return {
        "frame": reply.frame_index, "question": reply.question[:LONGEST_TEXT], "truth": grade.truth,
        "is_right": grade.is_right,
    }  # fmt: skip
