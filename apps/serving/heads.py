"""uvicorn's HTTP/1.1 with timeouts: clients that never finish a request's head or never read a response are cut off.

Slow bodies are handled in body.py, which can still respond.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

HEAD_S = 20.0
"""From the connection, or the first byte of its next request, until the head is complete."""


UNREAD_S = 60.0
"""How long a client may leave sent data unread."""


def timed_protocol(head_s: float = HEAD_S, unread_s: float = UNREAD_S) -> type[asyncio.Protocol]:
    """Needs uvicorn and h11."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Timed(H11Protocol):
        _cut: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin()
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; otherwise a closed transport waits for its client
                option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1e3 * unread_s))
                transport.get_extra_info("socket").setsockopt(*option)

        def data_received(self, data: bytes) -> None:
            if self._cut is None and self._is_between():
                self._begin()
            super().data_received(data)
            if not self._is_between():
                self._end()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _is_between(self) -> bool:
            """True while no request is being read or answered."""
            return self.cycle is None or self.cycle.response_complete

        def _begin(self) -> None:
            self._cut = self.loop.call_later(head_s, self.transport.abort)

        def _end(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    return Timed
