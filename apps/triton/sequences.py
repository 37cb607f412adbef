"""The streams of a server's sequences, by correlation id: what a START opens, and an END or a long silence frees."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

from engines.errors import StreamError
from engines.many.handle import Busy, QueueLimits, StreamHandle
from engines.many.scheduler import Scheduler
from engines.stream import PVCStream

WAITING = QueueLimits(frames=1, questions=4, when_full="refuse")
"""Whoever sends a frame waits for it, so no other one comes meanwhile: nothing is dropped."""


class Sequences:
    """At most scheduler.max_streams at once. Not for two threads at a time.

    A stream that is freed forgets its frames at once, and its caches serve the next sequence.
    """

    def __init__(
        self, scheduler: Scheduler, *, idle_s: float, options: dict[str, Any],
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """idle_s: a sequence that is not used for so long is freed, by whoever calls `free_idle`.
        options: of PVCStream, the same for all."""
        self.idle_s, self.options = idle_s, options
        self._scheduler, self._now = scheduler, now
        self._handles: dict[Hashable, StreamHandle] = {}
        self._used: dict[Hashable, float] = {}
        self._spare: list[StreamHandle] = []

    def __len__(self) -> int:
        return len(self._handles)

    def start(self, key: Hashable) -> StreamHandle:
        """A stream without frames; of a sequence that is known, its own, which starts anew.

        Raises Busy where as many sequences are open as may be, and what PVCStream raises.
        """
        if key in self._handles:
            self._handles[key].call(PVCStream.reset).result()
        else:
            self.free_idle()
            self._handles[key] = self._spare.pop() if self._spare else self._open()
        self.touch(key)
        return self._handles[key]

    def of(self, key: Hashable) -> StreamHandle:
        """Raises StreamError for a sequence that was not started, or was freed."""
        if key not in self._handles:
            raise StreamError(
                f"there is no sequence {key} here", expected="START with its first request",
                cause=f"it was never started, has ended, or was not used for {self.idle_s:g} s", fix="START it again",
            )  # fmt: skip
        return self._handles[key]

    def touch(self, key: Hashable) -> None:
        """It is used now."""
        if key in self._handles:
            self._used[key] = self._now()

    def end(self, key: Hashable) -> None:
        """Free it, if there is one."""
        handle = self._handles.pop(key, None)
        self._used.pop(key, None)
        if handle is not None:
            handle.call(PVCStream.reset).result()
            self._spare.append(handle)

    def free_idle(self) -> list[Hashable]:
        """End all that were not used for idle_s. Returns which."""
        latest = self._now() - self.idle_s
        idle = [key for key, used in self._used.items() if used <= latest]
        for key in idle:
            self.end(key)
        return idle

    def _open(self) -> StreamHandle:
        try:
            return self._scheduler.open(limits=WAITING, **self.options)
        except Busy as error:
            raise Busy(
                f"{len(self._handles)} sequences are open", expected=f"{self._scheduler.max_streams} or fewer",
                fix="END one, or make the repository again with more --slots", retry_after_s=error.retry_after_s,
            ) from error  # fmt: skip
