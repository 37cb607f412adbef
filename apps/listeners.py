"""A live session's interface to its followers (page, alerts, logs, snapshots): events out, commands in.

A session runs on one thread and calls its listeners there, so each must return immediately. Slow work, such as
compressing a picture or using a connection, has its own thread and takes the newest item available. A person's request
arrives as a command and is carried out between two frames.
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
    "alert-end",  # answers no longer match it
    "rollover",  # the stream continues from its last frames, or was restarted
    "reset",  # a person restarted the stream
    "source",  # lost, reconnected, switched, damaged, or the same picture for long
    "question",  # the standing question was changed
    "snapshot",
    "trouble",  # something outside the stream failed: a webhook, the disk of a recording
    "end",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened, as a line of the log records it.

    at        wall time, with time zone
    time_s    the newest frame's time on the source's timeline; frame: its index
    text      one line for the user
    question, answer, margin  of an `answer` or an event it caused; margin as in Reply
    alert     the pattern, as given
    snapshot  path of a picture of this moment
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
        """Ready for JSON: fields that are None are left out, and wall time is ISO 8601."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in fields.items() if value is not None} | {"at": self.at.isoformat()}


class Listener(Protocol):
    """Follows a session. Called on its thread: no method may block, and an exception ends the session."""

    def saw(self, captured: Captured, status: Status) -> None:
        """The model saw this frame, or it is shown again with a new status. Its picture must not be modified."""

    def said(self, question: str, text: str) -> None:
        """The part of an answer decoded so far."""

    def happened(self, event: Event, captured: Captured) -> None:
        """An event; captured: the newest frame."""

    def close(self) -> None:
        """The session ended; pending items are delivered within a few seconds, or abandoned and reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A person's question, asked once, in its turn."""

    question: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SetQuestion:
    """The new standing question."""

    question: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Take and show frames without passing them to the model, until paused is False."""

    paused: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reset:
    """Forget all frames, questions and answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeSnapshot:
    """Keep a picture of this moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """Switch to another source."""

    address: Address


Command = Ask | SetQuestion | Pause | Reset | TakeSnapshot | Switch


class Commands:
    """A queue of commands from any thread, in order."""

    def __init__(self, limit: int = 32) -> None:
        """limit: commands that may wait; more are refused, so that the queue is bounded."""
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._limit = limit

    def put(self, command: Command) -> bool:
        """Queue a command. False if too many are waiting."""
        if self._queue.qsize() >= self._limit:
            return False
        self._queue.put(command)
        return True

    def take(self) -> Command | None:
        """The oldest waiting command, or None."""
        try:
            return self._queue.get_nowait()
        except Empty:
            return None
