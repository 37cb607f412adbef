"""Passes a session's events to all its listeners, and adds alerts and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from apps.capture import Captured
from apps.listeners import Event, Listener
from apps.overlay import Status

from .alerts import Alerts
from .snapshots import Snapshots

PICTURED = ("alert", "snapshot")  # the kinds of event that get a picture


class Announcer:
    """A Listener that forwards to others.

    An `answer` is followed by the alerts that it begins or ends. Each alert and `snapshot` gets the path of a picture.
    A failure on another thread becomes a `trouble` event, with the next frame or event.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        alerts: Alerts,
        snapshots: Snapshots | None,
        troubles: SimpleQueue[str],
        say: Callable[[str], None],
        standing_question: Callable[[], str] | None = None,
    ) -> None:
        """listeners          closed in this order, so the log comes last
        troubles           failures, put there by any thread
        say                receives each failure, on the session's thread
        standing_question  the question whose answers may raise alerts; None: every answer may
        """
        self.alerts, self.snapshots, self.standing_question = alerts, snapshots, standing_question
        self._listeners, self._troubles, self._say = list(listeners), troubles, say
        self._newest: Captured | None = None

    def saw(self, captured: Captured, status: Status) -> None:
        self._newest = captured
        for listener in self._listeners:
            listener.saw(captured, status)
        self._tell_troubles()

    def said(self, question: str, text: str) -> None:
        for listener in self._listeners:
            listener.said(question, text)

    def happened(self, event: Event, captured: Captured) -> None:
        self._newest = captured
        self._tell(event, captured)
        if event.kind == "answer" and self._is_standing(event):
            for alert in self.alerts.judge(event):
                self._tell(alert, captured)
        self._tell_troubles()

    def close(self) -> None:
        """Close each listener; those not closed yet still receive its troubles."""
        while self._listeners:
            self._listeners.pop(0).close()
            self._tell_troubles()
        if self.snapshots is not None:
            self.snapshots.close()
            self._tell_troubles()

    def _is_standing(self, answer: Event) -> bool:
        return self.standing_question is None or answer.question == self.standing_question()

    def _tell(self, event: Event, captured: Captured) -> None:
        if self.snapshots is not None and event.kind in PICTURED and event.snapshot is None:
            event = replace(event, snapshot=self.snapshots.take(captured, event.at))
        for listener in self._listeners:
            listener.happened(event, captured)

    def _tell_troubles(self) -> None:
        """Report the troubles queued so far. Reporting one may cause another, which the next call reports."""
        for _ in range(self._troubles.qsize()):
            try:
                text = self._troubles.get_nowait()
            except Empty:
                return
            self._say(text)
            if (newest := self._newest) is not None:
                self._tell(Event(kind="trouble", text=text, frame=newest.index, time_s=newest.time_s), newest)
