"""What a live session tells whoever follows it, and what it may be told: the page, alerts, logs and snapshots.

Everything that a session does happens on one thread. It calls its listeners there, so each returns at once: what takes
time, such as a picture's compression or a connection, has a thread of its own and takes the newest that there is. What
a person asks for arrives as a command, and is done between two frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol

from .addresses import Address
from .capture import Captured
from .overlay import Status

EventKind = Literal[
    "answer",  # a question was answered
    "alert",  # answers begin to match an alert
    "alert-end",  # and no longer do
    "rollover",  # the stream goes on from its last frames, or was started again
    "reset",  # a person started it again
    "source",  # lost, found again, switched, damaged, or the same picture for long
    "question",  # the standing question was changed
    "snapshot",
    "trouble",  # something beside the stream failed: a webhook, the disk of a recording
    "end",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened, as a line of the log has it.

    at        wall time, with its zone
    time_s    of the newest frame, on the source's own timeline; frame its index
    text      for a person, in one line
    question, answer, margin  of an `answer` or what an answer set off; margin is that of Reply
    alert     the pattern, as it was given
    snapshot  path of a picture of that moment
    """

    kind: EventKind
    text: str
    frame: int
    time_s: float
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    question: str | None = None
    answer: str | None = None
    margin: float | None = None
    alert: str | None = None
    snapshot: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Fit for JSON: what is None is left out, and wall time is ISO 8601."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in fields.items() if value is not None} | {"at": self.at.isoformat()}


class Listener(Protocol):
    """Whoever follows a session. Called on its thread; nothing may block, and what is raised ends the session."""

    def saw(self, captured: Captured, status: Status) -> None:
        """The model saw this frame, or it is shown again with another status. Nobody writes into its picture."""

    def said(self, question: str, text: str) -> None:
        """An answer as far as it is decoded."""

    def happened(self, event: Event, captured: Captured) -> None:
        """captured: the newest frame."""

    def close(self) -> None:
        """The session ended; what waits is delivered within a few seconds, or given up and said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A question of a person's, asked once, in its turn."""

    question: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SetQuestion:
    """The question that is asked again and again from now on."""

    question: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Frames are taken and shown, and the model does not see them, until paused is False."""

    paused: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reset:
    """Forget all frames and all that was said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeSnapshot:
    """Keep a picture of this moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """Watch something else."""

    address: Address


Command = Ask | SetQuestion | Pause | Reset | TakeSnapshot | Switch


class Commands:
    """What people ask for, from any thread, in order."""

    def __init__(self, limit: int = 32) -> None:
        """limit: commands that may wait; more are refused, so that a flood cannot grow without end."""
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._limit = limit

    def put(self, command: Command) -> bool:
        """False if too many wait already."""
        if self._queue.qsize() >= self._limit:
            return False
        self._queue.put(command)
        return True

    def take(self) -> Command | None:
        """The oldest that waits; None if there is none."""
        try:
            return self._queue.get_nowait()
        except Empty:
            return None
