"""A log of a session's events, one line of JSON each, appended to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apps.capture import Captured
from apps.lines import Lines
from apps.listeners import Event
from apps.overlay import Status


class EventLog:
    """A Listener. An answer of ten words takes about 260 bytes: a question every 5 seconds makes 31 MB per week, one
    every second 157 MB.

    A kill leaves whole lines. A power cut may lose the last seconds, since writes do not wait for the disk.
    On a full disk the session continues: lost lines are counted, and reported when the loss begins and ends.
    """

    def __init__(self, path: Path, *, trouble: Callable[[str], None]) -> None:
        """Append to an existing file, or create it. Raises BackendUnavailable if it cannot be written."""
        self._lines, self._trouble = Lines(path), trouble
        self.num_lost = 0
        self._num_lost_now = 0  # since the disk was last found full
        if self._lines.num_cut:
            trouble(f"{path}: its last line was incomplete ({self._lines.num_cut} bytes) and was removed")

    def saw(self, captured: Captured, status: Status) -> None:
        pass

    def said(self, question: str, text: str) -> None:
        pass

    def happened(self, event: Event, captured: Captured) -> None:
        try:
            self._lines.append(event.to_json())
        except OSError as error:
            self.num_lost += 1
            self._num_lost_now += 1
            if self._num_lost_now == 1:
                self._trouble(f"{self._lines.path} cannot be written: {error.strerror}; log lines are being lost")
            return
        if self._num_lost_now:
            self._trouble(f"{self._lines.path} can be written again; {self._num_lost_now} lines were lost")
            self._num_lost_now = 0

    def close(self) -> None:
        self._lines.close()
