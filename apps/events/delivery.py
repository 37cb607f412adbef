"""Delivery of events to other machines, which may be slow or gone: one queue and one thread per destination.

An event is delivered at least once: if a reply is lost, it is sent again. Order is kept, except for dropped events.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from threading import Condition, Thread
from typing import Protocol

from apps.capture import Captured
from apps.listeners import Event, EventKind
from apps.overlay import Status

LIMIT = 1000
"""Events that may wait for one destination: most of a day at one per minute."""
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Waits between attempts to send an event; the last one repeats."""
CLOSE_S = 5.0


class NotDelivered(Exception):
    """An attempt failed. is_final: another would fail too, so the event is discarded."""

    def __init__(self, why: str, *, is_final: bool) -> None:
        super().__init__(why)
        self.is_final = is_final


class Sink(Protocol):
    """A destination for events. Only its Delivery's thread calls it."""

    name: str

    def send(self, event: Event) -> None:
        """Send the event and return once it was received. Raises NotDelivered. Blocks for a few seconds at most."""

    def close(self) -> None: ...


class Delivery:
    """A queue in front of one sink. When full, it drops the oldest event. Reports when trouble begins and ends."""

    def __init__(
        self,
        sink: Sink,
        *,
        trouble: Callable[[str], None],
        limit: int = LIMIT,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        """trouble: receives one line for the user, on any thread."""
        self.num_delivered = self.num_dropped = self.num_refused = 0
        self._sink, self._trouble, self._limit, self._pauses_s = sink, trouble, limit, pauses_s
        self._waiting: deque[Event] = deque()
        self._sending: Event | None = None
        self._is_ending = self._is_failing = False
        self._num_dropped_now = 0  # since the sink last worked
        self._changed = Condition()
        self._thread = Thread(target=self._run, name=f"to {sink.name}", daemon=True)
        self._thread.start()

    def offer(self, event: Event) -> None:
        """Queue it for sending. Returns immediately, on any thread."""
        with self._changed:
            is_full = len(self._waiting) >= self._limit
            if is_full:
                self._waiting.popleft()
                self.num_dropped += 1
                self._num_dropped_now += 1
            is_first = is_full and self._num_dropped_now == 1
            self._waiting.append(event)
            self._changed.notify_all()
        if is_first:
            self._trouble(f"{self._sink.name}: {self._limit} events are waiting; the oldest are now dropped")

    def finish(self) -> None:
        """Have the waiting events sent without pauses, up to the first failure. Returns immediately."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()

    def close(self, within_s: float = CLOSE_S) -> int:
        """Finish, and wait for it. Returns, and reports, the number of events not delivered."""
        self.finish()
        self._thread.join(max(within_s, 0.0))
        with self._changed:
            num_left = len(self._waiting) + (self._sending is not None)
        if num_left:
            self._trouble(f"{self._sink.name}: {num_left} events were not delivered before the end")
        return num_left

    def _run(self) -> None:
        while (event := self._next()) is not None:
            if not self._deliver(event):
                break
        self._sink.close()

    def _next(self) -> Event | None:
        """The oldest waiting event; None at the end."""
        with self._changed:
            while not self._waiting and not self._is_ending:
                self._changed.wait()
            self._sending = self._waiting.popleft() if self._waiting else None
            return self._sending

    def _deliver(self, event: Event) -> bool:
        """Send one event, with retries. Returns whether to continue with the next one."""
        for pause_s in chain(self._pauses_s, repeat(self._pauses_s[-1])):
            was_ending = self._is_ending
            try:
                self._sink.send(event)
            except NotDelivered as error:
                self._say_failure(error)
                if error.is_final:
                    self.num_refused += 1
                    break
                if was_ending:
                    return False
                with self._changed:
                    self._changed.wait_for(lambda: self._is_ending, pause_s)
            else:
                self.num_delivered += 1
                self._say_success()
                break
        self._sending = None
        return True

    def _say_failure(self, error: NotDelivered) -> None:
        if not self._is_failing:
            self._is_failing = True
            what_now = "the event is discarded" if error.is_final else "retrying"
            self._trouble(f"{self._sink.name}: {error}; {what_now}")

    def _say_success(self) -> None:
        with self._changed:
            num_dropped, self._num_dropped_now = self._num_dropped_now, 0
        if self._is_failing or num_dropped:
            self._is_failing = False
            dropped = f"; {num_dropped} events were dropped" if num_dropped else ""
            self._trouble(f"{self._sink.name}: working again{dropped}")


class Deliveries:
    """A Listener that offers events of some kinds to every destination, and closes them all within a few seconds."""

    def __init__(
        self, deliveries: Iterable[Delivery], kinds: Iterable[EventKind], *, within_s: float = CLOSE_S
    ) -> None:
        self._deliveries, self._kinds, self._within_s = list(deliveries), frozenset(kinds), within_s

    def saw(self, captured: Captured, status: Status) -> None:
        pass

    def said(self, question: str, text: str) -> None:
        pass

    def happened(self, event: Event, captured: Captured) -> None:
        if event.kind in self._kinds:
            for delivery in self._deliveries:
                delivery.offer(event)

    def close(self) -> None:
        for delivery in self._deliveries:
            delivery.finish()
        until = time.monotonic() + self._within_s
        for delivery in self._deliveries:
            delivery.close(until - time.monotonic())
