"""A pool of streams: each question borrows one, which is reset before the next use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

from engines.errors import StreamError
from engines.many.handle import Busy, StreamHandle
from engines.stream import PVCStream


class Pool:
    """Streams are opened on demand, `most` at the same time; when all are in use, further questions queue."""

    def __init__(self, open_stream: Callable[[], Awaitable[StreamHandle]], *, most: int, waiting: int) -> None:
        """waiting: length of the queue."""
        self._open, self._waiting, self._free = open_stream, waiting, list[StreamHandle]()
        self._lent, self.num_waiting = asyncio.Semaphore(most), 0

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[StreamHandle]:
        """An empty stream, inside the block. Raises Busy if the queue is full."""
        if self._lent.locked() and self.num_waiting >= self._waiting:
            raise Busy(
                f"{self.num_waiting} questions are waiting", expected=f"{self._waiting} or fewer",
                fix="ask again later", retry_after_s=1.0,
            )  # fmt: skip
        self.num_waiting += 1
        try:
            await self._lent.acquire()
        finally:
            self.num_waiting -= 1
        try:
            handle = self._free.pop() if self._free else await self._open()
        except BaseException:
            self._lent.release()
            raise
        try:
            yield handle
        finally:
            self._take_back(handle)

    def _take_back(self, handle: StreamHandle) -> None:
        """Reset and return the stream without waiting: if the borrower was cancelled, every await would raise."""
        loop = asyncio.get_running_loop()

        def is_reset(done: Future[None]) -> None:
            try:
                loop.call_soon_threadsafe(self._put, handle, done.exception() is None)
            except RuntimeError:
                return  # the server has ended

        try:
            handle.call(PVCStream.reset).add_done_callback(is_reset)
        except StreamError:
            self._put(handle, False)

    def _put(self, handle: StreamHandle, is_sound: bool) -> None:
        if is_sound:
            self._free.append(handle)
        else:
            handle.close()
        self._lent.release()
