"""A Service with sessions that outlive the process: those of KeptStreams."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from engines.errors import StreamError
from engines.many.scheduler import Scheduler

from .kept import KeptStreams
from .local import LocalLimits, LocalService
from .pictures import decode_frame
from .service import Opened, Piece, Pushed, Wanted


class KeptService(LocalService):
    """Sessions are in KeptStreams; questions without a session are answered as in LocalService."""

    def __init__(self, scheduler: Scheduler, kept: KeptStreams, *, limits: LocalLimits) -> None:
        """`kept` must use the same scheduler. Raises as LocalService does."""
        super().__init__(scheduler, limits=limits)
        self.kept = kept

    @property
    def num_sessions(self) -> int:
        return len(self.kept.sessions)

    async def open(self, session_id: str | None = None) -> Opened:
        return await self.kept.open(session_id or new_id())

    async def push(self, session_id: str, picture: bytes, frame_index: int | None = None) -> Pushed:
        return await self.kept.push(session_id, partial(decode_frame, picture, size=self._size), frame_index)

    async def ask(self, session_id: str, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        while True:
            handle, has_begun = await self.kept.handle(session_id), False
            try:
                async with aclosing(self._answer(handle, wanted)) as pieces:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
                return
            except StreamError:
                if has_begun or not handle.is_closed:
                    raise
            # The stream was released before the question was queued: try again, which takes it over or fails.

    async def close(self, session_id: str) -> None:
        await self.kept.close(session_id)


def new_id() -> str:
    """An unguessable id."""
    return secrets.token_hex(16)
