"""Reading of a request's body, with limits on its size, its time, and the total memory of all bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .errors import Refused
from .limits import Bodies, Limits, body_too_large, require_length

if TYPE_CHECKING:
    from starlette.requests import Request

CUT = {"connection": "close"}
"""Close the connection after a refused body: its unread rest would be parsed as the next request."""


@asynccontextmanager
async def body_of(request: Request, limits: Limits, bodies: Bodies, *, most: int | None = None) -> AsyncIterator[bytes]:
    """Read the whole body; it counts as in memory inside the block. Raises Refused: 413 over `most` bytes, 408 if it
    arrives too slowly, 429 if all bodies together are too large. Also raises starlette's ClientDisconnect."""
    limit, parts, taken = limits.body_bytes if most is None else most, list[bytes](), 0
    try:
        try:
            require_length(request.headers.get("content-length"), limit)
            async for part in _in_time(request, limits.body_s):
                bodies.take(len(part))
                taken += len(part)
                parts.append(part)
                if taken > limit:
                    raise body_too_large(limit)
        except Refused as refused:
            refused.headers |= CUT
            raise
        body = b"".join(parts)
        parts.clear()
        yield body
    finally:
        bodies.give_back(taken)


async def _in_time(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    import anyio

    ends = anyio.current_time() + timeout_s
    stream = request.stream()
    while True:
        part: bytes | None = None
        with anyio.move_on_after(ends - anyio.current_time()) as scope:
            part = await anext(stream, b"")
        if scope.cancelled_caught or part is None:
            raise Refused(f"the body was not received within {timeout_s:g} s", status=408, code="timeout")
        if not part:
            return  # starlette ends a body with an empty part
        yield part


def require_kind(request: Request, *kinds: str) -> None:
    """Raise Refused, with 415, unless the Content-Type is one of these kinds; a kind may end in /*."""
    told = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not any(told == kind or (kind.endswith("/*") and told.startswith(kind[:-1])) for kind in kinds):
        raise Refused(
            f"the body's Content-Type is '{told[:40]}'; expected the header Content-Type: {kinds[0]}",
            status=415, code="unsupported_media_type",
        )  # fmt: skip
