"""A session with scripted sources, and a listener that records what it is told.

A script puts a command before it yields a frame; the session obeys after that frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from apps.addresses import Address, parse_address
from apps.capture import Captured, Source
from apps.figures import Figures
from apps.listeners import Commands, Event
from apps.meters import Meter
from apps.overlay import Status
from apps.report import Log
from apps.session import LiveSession
from apps.switching import Switching
from apps.triggers import Schedule
from apps.watcher import Watcher
from engines import Bundle
from engines.signals import Signals

from .events.fakes import Follower
from .fakes import picture

QUESTION, NEVER = "What moves?", 1e9
CAMERA_2 = parse_address("2")


class Scripted:
    """A Source with a generator's frames; None: no frame in time. The generator may act between two frames."""

    def __init__(self, frames: Iterable[Captured | None], *, name: str = "camera 0", waits: bool = False) -> None:
        self._frames, self.waits = iter(frames), waits
        self.device: Any = SimpleNamespace(name=name, notice="", num_reconnects=0, damage=None, fps=10.0)
        self.ended = self.is_closed = False
        self.timeouts_s: list[float] = []

    def take(self, timeout_s: float) -> Captured | None:
        assert not self.is_closed
        self.timeouts_s.append(timeout_s)
        try:
            return next(self._frames)
        except StopIteration:
            self.ended = True
            return None

    def close(self) -> None:
        self.is_closed = True


class Recording(Follower):
    """Record all calls in order: a frame's index, the text so far, an event's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int | str] = []
        self.statuses: list[Status] = []

    def saw(self, captured: Captured, status: Status) -> None:
        super().saw(captured, status)
        self.calls.append(captured.index)
        self.statuses.append(status)

    def said(self, question: str, text: str) -> None:
        super().said(question, text)
        self.calls.append(text)

    def happened(self, event: Event, captured: Captured) -> None:
        super().happened(event, captured)
        self.calls.append(f"<{event.kind}>")

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]


@dataclass
class Live:
    """A session with a script, and its listener."""

    bundle: Bundle
    ask_every_s: float = NEVER
    waits: bool = False
    commands: Commands = field(default_factory=Commands)
    follower: Recording = field(default_factory=Recording)
    figures: list[Figures] = field(default_factory=list)
    signals: Signals = field(default_factory=Signals)
    opener: Callable[[Address], Source] = field(default=lambda address: Scripted([]))

    def run(self, frames: Iterable[Captured | None], **more: Any) -> LiveSession:
        watcher = Watcher(self.bundle, QUESTION, trigger=Schedule(self.ask_every_s), max_new_tokens=4)
        more = {"source": Scripted(frames, waits=self.waits)} | more
        session = LiveSession(
            watcher=watcher, meter=Meter(), log=Log(as_json=False),
            signals=self.signals, listener=self.follower, commands=self.commands,
            switching=Switching(self.opener), counted=[self.figures.append], **more,
        )  # fmt: skip
        self.session = session
        session.run()
        return session

    @property
    def told(self) -> list[str]:
        return [event.text for event in self.follower.events]


def frame(index: int, value: int | None = None, *, fps: float = 10.0, side: int = 64) -> Captured:
    """A frame of a moving picture, or of a constant one if `value` is given."""
    shown = picture(3 + index % 25 if value is None else value, width=side)
    return Captured(bgr=shown, index=index, time_s=index / fps, captured_at=0.0)


def moving(*indices: int) -> Iterator[Captured]:
    return (frame(index) for index in indices)


def until(is_so: Callable[[], object]) -> Iterator[None]:
    """Yield "no frame in time" until the condition is true."""
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.005)
        yield None
    pytest.fail("the condition did not become true in time")
