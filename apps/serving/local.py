"""A Service over the streams of this process."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.answer import PushTiming
from engines.bundle import Bundle
from engines.errors import StreamError, StreamFull
from engines.many.handle import Busy, QueueLimits, StreamHandle
from engines.many.scheduler import Scheduler
from engines.prompt import Turn
from engines.synthetic import Frame

from ..watcher import live_clock
from .endless import endless
from .limits import MIB
from .pictures import decode_frame, decode_picture
from .pieces import Telling
from .pool import Pool
from .service import NoSession, Opened, Piece, Pushed, Wanted

KEPT_RESULTS = 256
"""Number of a session's frames whose results are kept for retries; of an older one only its arrival is known."""
LETTING_GO_S = 5.0
SWEEP_S = 15.0
MOST_RESERVED = 512
FEWEST_TOKENS = 16
"""Fewest tokens to which an answer is shortened if the context has no room for the requested length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalLimits:
    """Limits on a process's streams.

    sessions  maximum open streams with memory; idle_s: seconds after which an unused one is closed
    answers   questions without a session answered concurrently, one stream each; waiting: questions that may queue
    queue     limits on a session's queue
    """

    sessions: int = 8
    answers: int = 4
    waiting: int = 64
    idle_s: float = 600.0
    queue: QueueLimits = QueueLimits()

    @property
    def streams(self) -> int:
        return self.sessions + self.answers

    def __post_init__(self) -> None:
        for name in ("sessions", "answers", "waiting", "idle_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


class _Session:
    """A stream with memory.

    next_index  index of the next frame; results: of the last frames, by index
    in_order    held from a frame's arrival until it is queued, so that frames are queued in order of arrival
    """

    def __init__(self, handle: StreamHandle, now: float) -> None:
        self.handle, self.used_at, self.num_busy = handle, now, 0
        self.next_index, self.in_order = 0, asyncio.Lock()
        self.results: OrderedDict[int, asyncio.Future[Pushed]] = OrderedDict()

    def remember(self, index: int, result: asyncio.Future[Pushed]) -> None:
        """Note a queued frame."""
        self.next_index = index + 1
        self.results[index] = result
        while len(self.results) > KEPT_RESULTS:
            self.results.popitem(last=False)


class LocalService:
    """All methods are called on one event loop; the streams run on the scheduler's thread."""

    def __init__(
        self, scheduler: Scheduler, *, limits: LocalLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The scheduler must have max_streams >= limits.streams. Raises StreamError if it has not."""
        self.limits, self._scheduler, self._clock = limits or LocalLimits(), scheduler, clock
        if scheduler.max_streams < self.limits.streams:
            raise StreamError(
                f"the scheduler has {scheduler.max_streams} streams",
                expected=f"{self.limits.streams}: {self.limits.sessions} sessions and {self.limits.answers} answers",
            )
        self._bundle = scheduler.bundle
        self._size = self._bundle.manifest.shape.image_size
        self._options = session_options(self._bundle)
        self._sessions: dict[str, _Session] = {}
        self._num_opening, self._is_sweeping = 0, False
        opening = partial(self._open_stream, QueueLimits(), {})
        self._pool = Pool(opening, most=self.limits.answers, waiting=self.limits.waiting)

    @property
    def model_id(self) -> str:
        return model_id_of(self._bundle.manifest.model.name)

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    async def complete(self, frames: tuple[bytes, ...], wanted: Wanted) -> AsyncGenerator[Piece, None]:
        """See Service. The stream comes from a pool and is reset before its next use."""
        async with self._pool.lease() as handle:
            pushing: asyncio.Future[PushTiming | None] | None = None
            for frame in frames:
                decoded = await asyncio.to_thread(decode_frame, frame, size=self._size)
                if pushing is not None:
                    await pushing
                pushing = asyncio.wrap_future(handle.push(decoded))
            if pushing is not None:
                await pushing
            async with aclosing(self._answer(handle, wanted)) as pieces:
                async for piece in pieces:
                    yield piece

    async def open(self, session_id: str | None = None) -> Opened:
        self._sweep()
        if session_id is None:
            session_id = secrets.token_urlsafe(16).replace("_", "-").strip("-")
        found = self._sessions.get(session_id)
        if found is None:
            if len(self._sessions) + self._num_opening >= self.limits.sessions:
                raise Busy(
                    f"{len(self._sessions)} sessions are open", expected=f"{self.limits.sessions} or fewer",
                    fix="close an unused session, or try again later", retry_after_s=min(self.limits.idle_s, 5.0),
                )  # fmt: skip
            self._num_opening += 1
            try:
                handle = await self._open_stream(self.limits.queue, self._options)
            finally:
                self._num_opening -= 1
            found = self._sessions.get(session_id)  # another request may have opened it meanwhile
            if found is None:
                found = self._sessions[session_id] = _Session(handle, self._clock())
            else:
                handle.close()
        found.used_at = self._clock()
        self._sweep_later()
        return Opened(id=session_id, num_frames=found.handle.num_frames)

    async def push(self, session_id: str, picture: bytes, frame_index: int | None = None) -> Pushed:
        session = self._find(session_id)
        with self._used(session_id, session):
            async with session.in_order:
                index, before = session.next_index if frame_index is None else frame_index, session.next_index
                if index >= before:
                    frame = await asyncio.to_thread(decode_frame, picture, size=self._size)
                    result = asyncio.ensure_future(self._pushed(session, session.handle.push(frame), index, before))
                    result.add_done_callback(lambda done: done.cancelled() or done.exception())  # mark as retrieved
                    session.remember(index, result)
            if index < before:
                return await self._repeated(session, index)
            return await asyncio.shield(result)  # if the client disconnects, the frame still counts

    async def ask(self, session_id: str, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        session = self._find(session_id)
        with self._used(session_id, session):
            async with aclosing(self._answer(session.handle, wanted)) as pieces:
                async for piece in pieces:
                    yield piece

    async def close(self, session_id: str) -> None:
        session = self._find(session_id)
        del self._sessions[session_id]
        await asyncio.wrap_future(session.handle.close())

    # -- a session's frames

    async def _repeated(self, session: _Session, index: int) -> Pushed:
        """The result of a frame sent before, once it is known. Raises what the frame raised."""
        if index in session.results:
            result = await asyncio.shield(session.results[index])
            return replace(result, is_repeated=True, num_frames=session.handle.num_frames)
        return Pushed(frame_index=index, is_repeated=True, num_frames=session.handle.num_frames)

    async def _pushed(self, session: _Session, pushing: Future[PushTiming | None], index: int, before: int) -> Pushed:
        """The result of a push. Raises what PVCStream.push raises: then the frame is not in the stream, and may be sent
        again if none came after it."""
        try:
            timing = await asyncio.wrap_future(pushing)
        except BaseException:
            if session.next_index == index + 1:
                session.next_index = before
                session.results.pop(index, None)
            raise
        pushed = Pushed(
            frame_index=index, is_dropped=timing is None, gap=index - before,
            num_frames=session.handle.num_frames,
        )  # fmt: skip
        if timing is None:
            return pushed
        return replace(pushed, vision_ms=timing.preprocess_ms + timing.vision_ms, ingest_ms=timing.ingest_ms)

    # -- answers

    async def _answer(self, handle: StreamHandle, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer. If the consumer stops, the answer ends at the next token."""
        images = await _decoded(wanted.images)
        earlier = [
            Turn(question=said.question, answer=said.answer, images=await _decoded(said.images))
            for said in wanted.earlier
        ]
        num_tokens = wanted.max_new_tokens
        while True:
            telling = Telling(asyncio.get_running_loop(), stop=wanted.stop)
            answer = handle.ask(
                wanted.question, images=images, max_new_tokens=num_tokens, keep=wanted.keep, earlier=earlier,
                sampling=wanted.sampling, stop=wanted.stop, heard=telling.heard,
            )  # fmt: skip
            try:
                async with aclosing(telling.pieces(answer)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except StreamFull:  # raised before anything ran
                if num_tokens <= FEWEST_TOKENS:
                    raise
                num_tokens = max(num_tokens // 2, FEWEST_TOKENS)
            finally:
                answer.cancel()  # no effect on a finished answer

    # -- sessions come and go

    def _find(self, session_id: str) -> _Session:
        self._sweep()
        session = self._sessions.get(session_id)
        if session is None:
            raise NoSession(
                f"session '{session_id}' does not exist",
                cause=f"it was never opened, was closed, or was unused for {self.limits.idle_s:g} s",
                fix="open it: POST /v1/streaming/sessions",
            )  # fmt: skip
        return session

    @contextmanager
    def _used(self, session_id: str, session: _Session) -> Iterator[None]:
        """Mark the session as in use. Raises NoSession if it is closed meanwhile."""
        session.num_busy += 1
        try:
            yield
        except StreamError:
            if self._sessions.get(session_id) is not session:
                raise NoSession(f"session '{session_id}' was closed before the request was finished") from None
            raise
        finally:
            session.num_busy -= 1
            session.used_at = self._clock()

    async def _open_stream(self, queue: QueueLimits, options: dict[str, Any]) -> StreamHandle:
        """Open a stream. Our count says one is free, so a full scheduler is still closing another one: wait for it."""
        ends = time.monotonic() + LETTING_GO_S
        while True:
            try:
                return await asyncio.to_thread(partial(self._scheduler.open, limits=queue, **options))
            except Busy:
                if time.monotonic() > ends:
                    raise
            await asyncio.sleep(0.01)

    def _sweep(self) -> None:
        """Close sessions unused for too long."""
        now = self._clock()
        for session_id, session in list(self._sessions.items()):
            if not session.num_busy and now - session.used_at > self.limits.idle_s:
                del self._sessions[session_id]
                session.handle.close()

    def _sweep_later(self) -> None:
        """Schedule the next sweep, as long as there are sessions."""
        if not self._is_sweeping and self._sessions:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(min(self.limits.idle_s, SWEEP_S), self._sweep_now)

    def _sweep_now(self) -> None:
        self._is_sweeping = False
        self._sweep()
        self._sweep_later()


def model_id_of(name: str) -> str:
    """The public id for a model's name or checkpoint folder; it does not reveal the folder's path."""
    return f"pvc-vision-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(name).name).strip('-.') or 'model'}"


def stream_bytes(bundle: Bundle) -> int:
    """Size of one session's caches. A stream that re-anchors has a second set, for the next episode."""
    manifest = bundle.manifest
    one = sum(graph.state_bytes(manifest.limits) for graph in manifest.graphs.values())
    return one if live_clock(manifest) == "run-on" else 2 * one


def fitting(limits: LocalLimits, bundle: Bundle, memory_bytes: int | None) -> LocalLimits:
    """The limits, with as many sessions as fit in memory next to the streams for answers. Raises StreamFull if not even
    one fits."""
    if memory_bytes is None:
        return limits
    each = stream_bytes(bundle)
    num_fitting = memory_bytes // each - limits.answers
    if num_fitting < 1:
        least = math.ceil((limits.answers + 1) * each / MIB * 10) / 10
        raise StreamFull(
            f"--memory {memory_bytes / MIB:.1f} MiB has no room for a session and the streams of {limits.answers} "
            "answers",
            expected=f"{least:.1f} MiB or more: a stream of this bundle takes {each / MIB:.1f}",
            fix="raise --memory, lower --answers, or export with a smaller --context and --window",
        )
    return replace(limits, sessions=min(limits.sessions, num_fitting))


def session_options(bundle: Bundle) -> dict[str, Any]:
    """Options of a stream without an end: it continues from its last frames if it can, and keeps room for a question
    and its answer."""
    if live_clock(bundle.manifest) == "run-on":
        return {"clock": "run-on"}
    reserve = min(MOST_RESERVED, bundle.manifest.limits.context // 2)
    while reserve:
        try:
            return endless(bundle, reserve=reserve)
        except StreamError:
            reserve //= 2
    return {"clock": "reanchor"}


async def _decoded(pictures: Sequence[bytes]) -> list[Frame]:
    return [await asyncio.to_thread(decode_picture, picture) for picture in pictures]
