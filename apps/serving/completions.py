"""OpenAI's chat completions, about pictures and videos in the request or about the frames of a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

from .answers import AnswerEvents, unless_gone, whole_answer
from .body import body_of, require_kind
from .chat import Chat, read_chat
from .errors import Refused
from .fields import read_json
from .replies import ChatReply
from .service import Piece
from .sessions import JSON, frame_index_of, frames_header, session_id_of
from .shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

T = TypeVar("T")
AT_ONCE = 32 * 1024
"""Bodies up to this size are parsed on the event loop: their pictures are too small to need a thread."""
DECODERS = 2


class Completions:
    """The chat completions endpoint."""

    def __init__(self, shared: Shared) -> None:
        self._shared, self._service = shared, shared.service
        self._decoders = asyncio.Semaphore(DECODERS)

    async def complete(self, request: Request) -> Response | AnswerEvents:
        from starlette.responses import JSONResponse

        shared = self._shared
        session_id, frame_index = request.headers.get("x-session-id"), frame_index_of(request)
        if session_id is None and frame_index is not None:
            raise Refused("X-Frame-Index needs a session: send X-Session-Id too", param="X-Frame-Index")
        async with body_of(request, shared.limits, shared.bodies) as body:
            require_kind(request, JSON)
            chat = await self._read(body)
            if session_id is None:
                frames, wanted = chat.of_clip()
                pieces, num_frames = self._service.complete(frames, wanted), len(frames)
            else:
                session_id = session_id_of(session_id, param="X-Session-Id")
                pieces, num_frames = await self._ask_session(session_id, frame_index, chat)
            headers = frames_header(num_frames) if session_id is not None or num_frames else {}
            reply = ChatReply(model=self._service.model_id)
            if not chat.is_streamed:
                told = await unless_gone(whole_answer(pieces, reply, shared.metrics), request.receive)
                return JSONResponse(told, headers=headers)
        return AnswerEvents(
            pieces, reply, shared.metrics, wants_usage=chat.wants_usage, headers=headers, send_s=shared.limits.send_s
        )

    async def _ask_session(
        self, session_id: str, frame_index: int | None, chat: Chat
    ) -> tuple[AsyncIterator[Piece], int]:
        """Push the frames the session has not seen. Returns the pieces of the answer, and the session's frame count."""
        opened = await self._service.open(session_id)
        frames, wanted = chat.of_session(num_frames=opened.num_frames)
        num_frames = opened.num_frames
        for number, frame in enumerate(frames):
            index = None if frame_index is None else frame_index + number
            pushed = await self._service.push(session_id, frame, index)
            self._shared.metrics.pushed(pushed)
            num_frames = pushed.num_frames
        return self._service.ask(session_id, wanted), num_frames

    async def _read(self, body: bytes) -> Chat:
        def read() -> Chat:
            return read_chat(read_json(body), model_id=self._service.model_id, limits=self._shared.limits)

        if len(body) <= AT_ONCE:
            return read()
        return await self._on_a_thread(read)

    async def _on_a_thread(self, work: Callable[[], T]) -> T:
        async with self._decoders:
            return await asyncio.to_thread(work)
