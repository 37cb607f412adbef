"""Detects a hanging session and a source without frames, reports them, and notifies systemd while all is well.

It ends nothing: an engine that hangs inside a driver cannot be stopped from here. Under systemd a hanging session is no
longer reported as alive, so systemd restarts the service. A lost camera is only reported: a restart would not bring it
back.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event as Signal
from threading import Lock, Thread, get_ident
from typing import Literal

from .capture import Captured
from .listeners import Event
from .overlay import Status
from .systemd import Systemd

LONGEST_CHECK_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """A hang. what: the session's thread, or its source's frames; since_s: duration so far; stack: where it hangs."""

    what: Literal["session", "frames"]
    since_s: float
    stack: str = ""

    def __str__(self) -> str:
        if self.what == "frames":
            return f"no frame for {self.since_s:.0f} s"
        return f"the session has been hanging for {self.since_s:.0f} s"


class Watchdog:
    """A Listener that treats every call as a sign of life; the session also calls `beat` while it waits for frames.

    changed  called on the watchdog's thread when something begins to hang, and with None when all is well again
    """

    def __init__(
        self,
        *,
        hang_s: float,
        no_frame_s: float,
        changed: Callable[[Hang | None], None],
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        systemd: Systemd | None = None,
    ) -> None:
        """hang_s must be longer than any answer's time to its first token; say receives the hanging thread's stack."""
        self.hang_s, self.no_frame_s = hang_s, no_frame_s
        self._changed, self._say, self._clock = changed, say, clock
        self._systemd = systemd or Systemd()
        self._lock = Lock()
        self._beat_at = self._frame_at = clock()
        self._watched: int | None = None  # the session's thread
        self._reported: str | None = None
        self._closing = Signal()
        self._thread = Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching; call on the session's thread when it begins. Earlier time does not count as a hang."""
        self._watched = get_ident()
        self._beat_at = self._frame_at = self._clock()
        self._systemd.ready()
        self._thread.start()

    def beat(self) -> None:
        """Note that the session's thread is alive."""
        self._beat_at = self._clock()

    def saw(self, captured: Captured, status: Status) -> None:
        self._frame_at = self._clock()
        self.beat()

    def said(self, question: str, text: str) -> None:
        self.beat()

    def happened(self, event: Event, captured: Captured) -> None:
        self.beat()

    def close(self) -> None:
        self._systemd.stopping()
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)

    def look(self) -> Hang | None:
        """The present hang, or None. A hanging session takes no frames, so its source is not reported as well."""
        now = self._clock()
        if (since_s := now - self._beat_at) > self.hang_s:
            return Hang(what="session", since_s=since_s)
        if (since_s := now - self._frame_at) > self.no_frame_s:
            return Hang(what="frames", since_s=since_s)
        return None

    def check(self) -> Hang | None:
        """Look, notify systemd, and report changes. Returns what `look` found."""
        hang = self.look()
        if hang is not None and hang.what == "session":
            self._systemd.troubled(str(hang))
        else:
            self._systemd.alive("watching" if hang is None else str(hang))
        with self._lock:
            what = None if hang is None else hang.what
            is_news, self._reported = what != self._reported, what
        if is_news:
            self._report(hang)
        return hang

    def _report(self, hang: Hang | None) -> None:
        if hang is not None and hang.what == "session":
            hang = Hang(what=hang.what, since_s=hang.since_s, stack=stack_of(self._watched))
            self._say(f"{hang}, in this call:\n{hang.stack}")
        self._changed(hang)

    def _run(self) -> None:
        limits = [self.hang_s, self.no_frame_s, 2 * LONGEST_CHECK_S, self._systemd.watchdog_s or float("inf")]
        while not self._closing.wait(min(limits) / 2):
            self.check()


def stack_of(thread: int | None) -> str:
    """A thread's stack, innermost call last; empty if the thread does not exist."""
    frame = None if thread is None else sys._current_frames().get(thread)
    return "" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
