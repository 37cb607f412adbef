"""Streams that outlive their process: each is saved regularly, and another process can continue it.

A stream is saved after a number of frames, and after each re-anchor. A session unknown to this process is looked up in
the snapshots. The snapshots are also checked before an answer, and when a frame is not the expected next one, since
another process may have taken the session over meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from engines.answer import PushTiming
from engines.errors import BackendUnavailable, PVCError, StreamError
from engines.many.handle import Busy, QueueLimits, StreamHandle
from engines.many.scheduler import Scheduler
from engines.synthetic import Frame

from .handover import Damaged, Found, Snapshots, Standing
from .held import Held
from .service import NoSession, Opened, Pushed

T = TypeVar("T")
EVERY = 16
"""Frames between two snapshots."""
POLL_S = 0.05
IDLE_S = 1.0
"""A stream unused for this long may be released for another one."""


class Leaving(Busy):
    """This process is shutting down and another one will take over the stream. Nothing was done."""

    def __init__(self, what: str = "this replica is shutting down") -> None:
        super().__init__(what, fix="send the request again", retry_after_s=0.2)


class KeptStreams:
    """The streams of this process. Methods run on one event loop, `release_all` on any thread. Each raises PVCError:
    NoSession, Busy, and what PVCStream raises."""

    def __init__(
        self,
        scheduler: Scheduler,
        snapshots: Snapshots,
        *,
        every: int = EVERY,
        most: int | None = None,
        limits: QueueLimits | None = None,
        is_alive: Callable[[str], bool] = lambda owner: False,
        ask_owner: Callable[[str, str], Awaitable[None]] | None = None,
        wait_s: float = 3.0,
        say: Callable[[str], None] = lambda text: None,
        **options: Any,
    ) -> None:
        """`options` are PVCStream's, for new streams.

        most       limit on streams here, if below the scheduler's; the stream idle longest is released for a new one
        is_alive   whether an owner still runs: then it gets wait_s to release a stream it has
        ask_owner  (session, owner) asks that owner to release the session
        say        receives failures of snapshots; the stream continues
        """
        self._scheduler, self._snapshots, self._every, self._limits = scheduler, snapshots, every, limits
        self._most = scheduler.max_streams if most is None else most
        self._is_alive, self._ask_owner, self._wait_s, self._say = is_alive, ask_owner, wait_s, say
        self._options = options
        self._held: dict[str, Held] = {}
        self._locks = WeakValueDictionary[str, asyncio.Lock]()  # each is kept alive by the calls that use it
        self._files = ThreadPoolExecutor(4, thread_name_prefix="snapshots")
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="writers")  # threads of `files` may wait for these
        self._num_opening, self._is_closing = 0, False

    @property
    def sessions(self) -> tuple[str, ...]:
        return tuple(self._held)

    async def open(self, session: str) -> Opened:
        """A new stream, or the one with this id, from here or from its snapshot."""
        async with self._one(session):
            try:
                held = await self._find(session, is_sure=False)
            except NoSession:
                held = await self._begin(session, generation=1)
            lost = held.anew or (
                "" if held.lost_from is None
                else f"the session continues from a snapshot at frame {held.lost_from}; later frames were lost with "
                "their replica"
            )  # fmt: skip
            return Opened(id=session, num_frames=held.handle.num_frames, lost=lost)

    async def push(self, session: str, decode: Callable[[], Frame], frame_index: int | None = None) -> Pushed:
        """Push the next frame, returned by `decode` on another thread. The index prevents pushing a frame twice: a
        repetition waits for the first one's result."""
        async with self._one(session):
            held = self._held.get(session)
            is_next = held is not None and frame_index == held.next_index
            held = await self._find(session, is_sure=is_next)
            index = held.next_index if frame_index is None else frame_index
            is_repeated = index < held.next_index
            if is_repeated:
                done, gap, lost = held.in_flight.get(index), 0, held.lost_before(index, is_sure=True)
            else:
                frame = await asyncio.to_thread(decode)
                done, gap = held.handle.push(frame), index - held.next_index
                lost = held.lost_before(index, is_sure=frame_index is not None)
                held.next_index, held.in_flight[index] = index + 1, done
                done.add_done_callback(partial(self._pushed, held, index))
        try:
            # Shielded: if the client disconnects, the frame is pushed anyway, since its index is taken.
            timing = None if done is None else await asyncio.shield(asyncio.wrap_future(done))
        except PVCError as error:
            if held.is_lost:  # another process has the stream, without this frame
                raise Leaving("another replica has taken over this stream") from error
            if held.next_index == index + 1 and not is_repeated:
                held.next_index = index
            raise
        return Pushed(
            frame_index=index, is_repeated=is_repeated, is_dropped=timing is None and not is_repeated, gap=gap,
            num_frames=held.handle.num_frames, lost=lost,
            vision_ms=0.0 if timing is None else timing.vision_ms,
            ingest_ms=0.0 if timing is None else timing.ingest_ms,
        )  # fmt: skip

    async def handle(self, session: str) -> StreamHandle:
        """The stream's handle, for a question."""
        async with self._one(session):
            return (await self._find(session, is_sure=False)).handle

    async def close(self, session: str) -> None:
        """Delete the session, here and among the snapshots. Raises NoSession if it does not exist."""
        async with self._one(session):
            held = self._held.pop(session, None)
            if held is not None:
                held.is_lost = True  # a snapshot being written must not restore it
                held.handle.close()
            elif await self._in_thread(self._snapshots.newest, session) is None:
                raise _no_session(session)
            await self._in_thread(self._snapshots.forget, session)

    async def release(self, session: str) -> bool:
        """Save the stream for another process and release it. False if this process does not have it."""
        async with self._one(session):
            held = self._held.pop(session, None)
            if held is None:
                return False
            await self._in_thread(self._release, held)
            return True

    def release_all(self) -> None:
        """Save and release every stream. No session is accepted afterwards."""
        self._is_closing = True
        for done in [self._files.submit(self._release, held) for held in self._held.values()]:
            done.result()
        self._held.clear()
        self._files.shutdown(wait=True)
        self._writers.shutdown(wait=True)

    # -- finding -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _one(self, session: str) -> AsyncIterator[None]:
        """Run the calls of a session one at a time, in order of arrival."""
        async with self._locks.setdefault(session, asyncio.Lock()):
            if self._is_closing:
                raise Leaving()
            yield

    async def _find(self, session: str, *, is_sure: bool) -> Held:
        """The stream, taken over if it is not here or no longer ours. is_sure: if it is here, it is surely ours."""
        held = self._held.get(session)
        if held is not None and not is_sure:
            try:
                newest = await self._in_thread(self._snapshots.newest, session)
                held.is_lost = held.is_lost or newest != held.standing.rank
            except BackendUnavailable as error:
                self._say(f"cannot check whether stream {session!r} still belongs to this replica: {error.what}")
        if held is not None and held.is_lost:
            del self._held[session]
            held.handle.close()
            held = None
        if held is None:
            held = await self._take_up(session)
        held.used_at = time.monotonic()
        return held

    async def _take_up(self, session: str) -> Held:
        """Take over a stream from its snapshot. Raises NoSession if there is none."""
        try:
            found = await self._let_go(session)
        except Damaged as error:
            return await self._begin(session, generation=error.rank[0] + 1, why=str(error.what))
        if found is None:
            raise _no_session(session)
        before = found.standing
        owner, generation = self._snapshots.owner, before.generation + 1
        try:
            handle = await self._opened(found.saved)
        except Busy:
            raise
        except StreamError as error:
            why = f"its snapshot cannot be opened: {error.what}"
            return await self._begin(session, generation=generation, why=why)
        standing = replace(before, owner=owner, generation=generation, is_released=False)
        is_whole = before.is_released and not before.is_untold
        return await self._hold(handle, standing, found.saved, lost_from=None if is_whole else before.next_index)

    async def _begin(self, session: str, *, generation: int, why: str = "") -> Held:
        anew = f"the session starts from scratch, and its earlier frames are lost: {why}" if why else ""
        standing = Standing(session=session, owner=self._snapshots.owner, generation=generation, anew=anew)
        return await self._hold(await self._opened(b""), standing, b"", lost_from=None)

    async def _hold(self, handle: StreamHandle, standing: Standing, saved: bytes, *, lost_from: int | None) -> Held:
        held = Held(
            handle=handle, standing=standing, next_index=standing.next_index, done_index=standing.next_index,
            num_anchors=handle.num_anchors, lost_from=lost_from, anew=standing.anew,
            told=(standing.told_index, standing.told),
        )  # fmt: skip
        try:
            await self._in_thread(self._snapshots.write, standing, saved)
        except BaseException:
            handle.close()
            raise
        self._held[standing.session] = held
        return held

    async def _opened(self, saved: bytes) -> StreamHandle:
        """Open a stream from these bytes, or a new one. At the limit, the stream idle longest is released first."""
        while len(self._held) + self._num_opening >= self._most:
            if not await self._make_room():
                raise Busy(
                    f"{len(self._held)} sessions are open", expected=f"{self._most} or fewer",
                    fix="close an unused session, or try again later", retry_after_s=1.0,
                )  # fmt: skip
        self._num_opening += 1
        try:
            return await self._in_thread(self._open, saved)
        finally:
            self._num_opening -= 1

    def _open(self, saved: bytes) -> StreamHandle:
        if not saved:
            return self._scheduler.open(limits=self._limits, **self._options)
        with tempfile.TemporaryDirectory(prefix="pvc-snapshot-") as folder:
            path = Path(folder) / "stream.npz"
            path.write_bytes(saved)
            return self._scheduler.open(limits=self._limits, saved=str(path))

    async def _make_room(self) -> bool:
        until = time.monotonic() - IDLE_S
        idle = {
            session: held for session, held in self._held.items()
            if held.used_at < until and held.handle.num_waiting == 0 and session not in self._locks
        }  # fmt: skip
        if not idle:
            return False
        session = min(idle, key=lambda each: idle[each].used_at)
        held = self._held.pop(session)
        await self._in_thread(self._release, held)
        await asyncio.wrap_future(held.handle.gone)
        return True

    async def _let_go(self, session: str) -> Found | None:
        """The snapshot, once its owner has released it, has ended, or has used up its time."""
        until, has_asked = time.monotonic() + self._wait_s, False
        while True:
            found = await self._in_thread(self._snapshots.read, session)
            if found is None or found.standing.is_released or found.standing.owner == self._snapshots.owner:
                return found
            owner = found.standing.owner
            if time.monotonic() > until or not await self._in_thread(self._is_alive, owner):
                # Read again: the owner may have released it after the first read and before it ended.
                return await self._in_thread(self._snapshots.read, session)
            if not has_asked and self._ask_owner is not None:
                has_asked = True
                await self._ask_owner(session, owner)
            await asyncio.sleep(POLL_S)

    # -- saving --------------------------------------------------------------------------------------------------------

    def _pushed(self, held: Held, index: int, done: Future[PushTiming | None]) -> None:
        """Runs on the scheduler's thread between two steps; for a dropped frame, on the thread that pushed."""
        held.in_flight.pop(index, None)
        if done.cancelled() or done.exception() is not None or done.result() is None:
            return
        held.done_index, held.num_since = index + 1, held.num_since + 1
        is_due = held.num_since >= self._every or held.handle.num_anchors != held.num_anchors
        if not is_due or not held.begin_saving():
            return
        try:
            saved = held.handle.call(held.to_save)
        except StreamError:  # the queue is full, or the stream was closed: the next frame tries again
            held.is_saving = False
            return
        saved.add_done_callback(lambda saved: self._writers.submit(self._write_next, held, saved))

    def _write_next(self, held: Held, saved: Future[tuple[Standing, bytes]]) -> None:
        """Runs on a thread of `writers`."""
        try:
            self._write(held, saved, is_released=False)
        finally:
            held.is_saving = False

    def _write(self, held: Held, saved: Future[tuple[Standing, bytes]], *, is_released: bool) -> None:
        """Write the snapshot, unless another process has the stream."""
        try:
            standing, content = saved.result()
            newest = self._snapshots.newest(standing.session)
            held.is_lost = held.is_lost or newest != held.standing.rank
            if not held.is_lost:
                held.standing = replace(standing, is_released=is_released)
                self._snapshots.write(held.standing, content)
        except PVCError as error:
            self._say(f"stream {held.standing.session!r} was not saved: {error.what}")

    def _release(self, held: Held) -> None:
        """Save and close the stream. Runs on a thread of `files`."""
        held.leave()
        try:
            self._write(held, held.handle.call(held.to_save), is_released=True)
        except StreamError as error:
            self._say(f"stream {held.standing.session!r} was not saved: {error.what}")
        held.handle.close()

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, partial(function, *args))


def _no_session(session: str) -> NoSession:
    return NoSession(f"session {session!r} does not exist", fix="open it first")
