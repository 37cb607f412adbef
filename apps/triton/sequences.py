"""The streams of a server's sequences, by correlation id: opened by START, freed by END or when idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

from engines.errors import StreamError
from engines.many.handle import Busy, QueueLimits, StreamHandle
from engines.many.scheduler import Scheduler
from engines.stream import PVCStream

WAITING = QueueLimits(frames=1, questions=4, when_full="refuse")
"""The sender of a frame waits for its response, so no other frame arrives meanwhile and none is dropped."""


class Sequences:
    """At most scheduler.max_streams sequences. Not thread-safe.

    A freed stream forgets its frames immediately, and its caches are reused for the next sequence.
    """

    def __init__(
        self, scheduler: Scheduler, *, idle_s: float, options: dict[str, Any],
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """idle_s: time after which `free_idle` frees an unused sequence.
        options: PVCStream's, the same for all."""
        self.idle_s, self.options = idle_s, options
        self._scheduler, self._now = scheduler, now
        self._handles: dict[Hashable, StreamHandle] = {}
        self._used: dict[Hashable, float] = {}
        self._spare: list[StreamHandle] = []

    def __len__(self) -> int:
        return len(self._handles)

    def start(self, key: Hashable) -> StreamHandle:
        """An empty stream for the sequence; a known sequence's stream is reset.

        Raises Busy if the limit on open sequences is reached, and what PVCStream raises.
        """
        if key in self._handles:
            self._handles[key].call(PVCStream.reset).result()
        else:
            self.free_idle()
            self._handles[key] = self._spare.pop() if self._spare else self._open()
        self.touch(key)
        return self._handles[key]

    def of(self, key: Hashable) -> StreamHandle:
        """The sequence's stream. Raises StreamError for a sequence that was not started, or was freed."""
        if key not in self._handles:
            raise StreamError(
                f"sequence {key} does not exist", expected="START in its first request",
                cause=f"it was never started, has ended, or was unused for {self.idle_s:g} s",
                fix="send its next request with START",
            )  # fmt: skip
        return self._handles[key]

    def touch(self, key: Hashable) -> None:
        """Note that the sequence is in use."""
        if key in self._handles:
            self._used[key] = self._now()

    def end(self, key: Hashable) -> None:
        """Free the sequence, if it exists."""
        handle = self._handles.pop(key, None)
        self._used.pop(key, None)
        if handle is not None:
            handle.call(PVCStream.reset).result()
            self._spare.append(handle)

    def free_idle(self) -> list[Hashable]:
        """End all sequences unused for idle_s. Returns their keys."""
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
                fix="END a sequence, or write the repository again with more --slots",
                retry_after_s=error.retry_after_s,
            ) from error  # fmt: skip
