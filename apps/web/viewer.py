"""What waits for one viewer: the newest picture, and a bounded queue of messages.

Note: a viewer that is slow costs nobody anything. A picture replaces the one that waits, a message the one of its kind
where only the newest matters; and if too many wait all the same, they are dropped, and the viewer is told everything
anew from the state as it is then.
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
    """What is sent next. closed: nothing comes after it."""

    messages: tuple[str, ...]
    picture: bytes | None
    wants_state: bool
    closed: bool


class Viewer:
    """`put` and `show` are called on any thread, `take` on the loop that the viewer was made on."""

    def __init__(self, number: int, *, limit: int = QUEUE) -> None:
        self.number, self._limit = number, limit
        self.num_overflows = 0
        self._loop, self._awake = asyncio.get_running_loop(), asyncio.Event()
        self._lock = Lock()
        self._messages: OrderedDict[str | int, str] = OrderedDict()
        self._num_put = 0
        self._picture: bytes | None = None
        self._wants_state, self._closed, self._is_woken = True, False, True
        self._awake.set()  # the state is what it gets first

    @property
    def num_waiting(self) -> int:
        return len(self._messages) + (self._picture is not None)

    def put(self, message: str, *, newest_of: str | None = None) -> None:
        """newest_of: a kind of which only the newest message matters."""
        with self._lock:
            if self._wants_state or self._closed:
                return  # the state will hold it
            self._num_put += 1
            key = self._num_put if newest_of is None else newest_of
            self._messages.pop(key, None)  # the newest goes behind what came before it
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
        """What waits is still sent."""
        with self._lock:
            self._closed = True
        self._wake()

    async def take(self, timeout_s: float) -> Parcel:
        """All that waits, as soon as there is something; empty if nothing came in time."""
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
        """The state, taken while nothing can be put: what is put later is not older than it."""
        with self._lock:
            self._messages.clear()
            self._wants_state = False
            return state()

    def _wake(self) -> None:
        with self._lock:
            if self._is_woken:
                return
            self._is_woken = True
        with suppress(RuntimeError):  # the server's loop is gone, and this viewer with it
            self._loop.call_soon_threadsafe(self._awake.set)
