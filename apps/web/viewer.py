"""The queue of one viewer: the newest picture and a limited number of messages.

Note: a slow viewer does not affect anyone else. A new picture replaces a waiting one; a message replaces a waiting one
of its kind if only the newest matters. If too many still wait, they are dropped and the viewer gets the complete
current state instead.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import NamedTuple, TypeVar

QUEUE = 64
State = TypeVar("State")


class Parcel(NamedTuple):
    """The next things to send. closed: nothing comes after them."""

    messages: tuple[str, ...]
    picture: bytes | None
    wants_state: bool
    closed: bool


class Viewer:
    """One viewer. `put` and `show` may be called on any thread, `take` only on the event loop that created it."""

    def __init__(self, number: int, *, limit: int = QUEUE) -> None:
        self.number, self._limit = number, limit
        self.num_overflows = 0
        self._loop, self._awake = asyncio.get_running_loop(), asyncio.Event()
        self._lock = Lock()
        self._messages: OrderedDict[str | int, str] = OrderedDict()
        self._num_put = 0
        self._picture: bytes | None = None
        self._wants_state, self._closed, self._is_woken = True, False, True
        self._awake.set()  # the state is sent first

    @property
    def num_waiting(self) -> int:
        return len(self._messages) + (self._picture is not None)

    def put(self, message: str, *, newest_of: str | None = None) -> None:
        """Queue a message. newest_of: a kind of which only the newest message matters."""
        with self._lock:
            if self._wants_state or self._closed:
                return  # the state will contain it
            self._num_put += 1
            key = self._num_put if newest_of is None else newest_of
            self._messages.pop(key, None)  # so that the new one goes to the end of the queue
            self._messages[key] = message
            if len(self._messages) > self._limit:
                self._messages.clear()
                self._wants_state = True
                self.num_overflows += 1
        self._wake()

    def show(self, picture: bytes) -> None:
        with self._lock:
            self._picture = picture
        self._wake()

    def close(self) -> None:
        """Close after sending what is waiting."""
        with self._lock:
            self._closed = True
        self._wake()

    async def take(self, timeout_s: float) -> Parcel:
        """Everything waiting, as soon as there is something; empty if nothing came in time."""
        try:
            await asyncio.wait_for(self._awake.wait(), timeout_s)
        except asyncio.TimeoutError:
            return Parcel((), None, wants_state=False, closed=self._closed)
        with self._lock:
            self._awake.clear()
            self._is_woken = False
            parcel = Parcel(tuple(self._messages.values()), self._picture, self._wants_state, self._closed)
            self._messages.clear()
            self._picture = None
        return parcel

    def with_state(self, state: Callable[[], State]) -> State:
        """The state, read while nothing can be queued, so that later messages are never older than it."""
        with self._lock:
            self._messages.clear()
            self._wants_state = False
            return state()

    def _wake(self) -> None:
        with self._lock:
            if self._is_woken:
                return
            self._is_woken = True
        with suppress(RuntimeError):  # the server's loop has ended, and this viewer with it
            self._loop.call_soon_threadsafe(self._awake.set)
