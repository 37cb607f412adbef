"""Sending an answer to a client: complete, or streamed as events. It ends if the client disconnects.

Note: nothing is sent before the first piece is known, so that a refused request still gets its HTTP status.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from .errors import refusal_of
from .metrics import Metrics
from .service import Piece

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class Reply(Protocol):
    """Builds the JSON of an answer: ChatReply, AskReply."""

    def whole(self, text: str, last: Piece) -> dict[str, Any]: ...

    def begun(self, *, wants_usage: bool) -> list[dict[str, Any]]: ...

    def more(self, piece: Piece, *, wants_usage: bool) -> list[dict[str, Any]]: ...


class Gone(Exception):
    """The client disconnected."""


async def whole_answer(pieces: AsyncIterator[Piece], reply: Reply, metrics: Metrics) -> dict[str, Any]:
    """The complete answer as one object. Raises what the pieces raise."""
    texts, started = list[str](), time.monotonic()
    async with aclosing(cast("AsyncGenerator[Piece, None]", pieces)):
        piece = await anext(pieces)
        metrics.began(time.monotonic() - started)
        texts.append(piece.text)
        while piece.finish is None:
            piece = await anext(pieces)
            texts.append(piece.text)
    metrics.answered(piece, time.monotonic() - started)
    return reply.whole("".join(texts), piece)


class AnswerEvents:
    """The events of a streamed answer, as an ASGI app. An error before the first piece is raised; a later one is sent
    as an event, which OpenAI's clients raise."""

    def __init__(
        self, pieces: AsyncIterator[Piece], reply: Reply, metrics: Metrics, *, wants_usage: bool,
        headers: dict[str, str], send_s: float,
    ) -> None:  # fmt: skip
        self._pieces, self._reply, self._metrics = pieces, reply, metrics
        self._wants_usage, self._headers, self._send_s = wants_usage, headers, send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(cast("AsyncGenerator[Piece, None]", self._pieces)):
            await unless_gone(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        started, piece = time.monotonic(), await anext(self._pieces)
        self._metrics.began(time.monotonic() - started)
        fields = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no", **self._headers}
        headers = [(name.encode(), text.encode()) for name, text in fields.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._tell(send, self._reply.begun(wants_usage=self._wants_usage))
        try:
            while True:
                await self._tell(send, self._reply.more(piece, wants_usage=self._wants_usage))
                if piece.finish is not None:
                    self._metrics.answered(piece, time.monotonic() - started)
                    await self._put(send, DONE)
                    break
                piece = await anext(self._pieces)
        except Exception as error:
            if isinstance(error, OSError | TimeoutError | Gone):
                raise
            self._metrics.failed(error)
            await self._tell(send, [refusal_of(error).to_json()])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send, told: list[dict[str, Any]]) -> None:
        if told:
            await self._put(send, b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in told))

    async def _put(self, send: Send, body: bytes) -> None:
        """Send part of the body. Raises Gone if the client does not read it in time: a stalled answer would occupy its
        stream indefinitely."""
        import anyio

        with anyio.move_on_after(self._send_s):
            await send({"type": "http.response.body", "body": body, "more_body": True})
            return
        raise Gone


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """Return or raise what `work` does; if the client disconnects, cancel it and raise Gone. The request's body must
    have been read completely."""
    import anyio

    outcome: list[Callable[[], T]] = []

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async def do() -> None:
        try:
            result = await work
        except Exception as error:
            outcome.append(_raising(error))
        else:
            outcome.append(lambda: result)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        group.start_soon(do)
    if not outcome:
        raise Gone
    return outcome[0]()


def _raising(error: Exception) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again
