"""One viewer's WebSocket: sends the waiting messages and receives the page's requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..addresses import parse_address
from ..browser import Refused
from ..listeners import Command, Switch
from .hub import Hub
from .orders import Bucket, Camera, Reader
from .viewer import Viewer

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

BEAT_S = 4.0  # idle time before a sign of life is sent; a page that receives nothing for longer reconnects
ORDERS_PER_S, ORDERS_AT_ONCE = 5.0, 20
PATIENCE = 200  # refusals (one per second is forgiven) after which a page is disconnected
UNAUTHORIZED, TOO_MANY, ABUSE, GOING_AWAY = 4401, 4429, 4408, 1001
End = tuple[int, str] | None
"""Close code and reason from one half of a connection; None if the page disconnected."""


async def serve_viewer(socket: WebSocket, hub: Hub, reader: Reader) -> None:
    """Serve a viewer until it disconnects or the session ends. The socket is not accepted yet."""
    import anyio

    await socket.accept()
    viewer = hub.join()
    if viewer is None:
        await socket.close(TOO_MANY, f"the limit of {hub.options.viewers} viewers is reached")
        return
    ends: list[End] = []
    try:
        async with anyio.create_task_group() as group:

            async def until_it_ends(half: Callable[[], Awaitable[End]]) -> None:
                with suppress(*_gone()):
                    ends.append(await half())
                group.cancel_scope.cancel()  # one half ended, so the other one must end too

            group.start_soon(until_it_ends, lambda: _send(socket, hub, viewer))
            group.start_soon(until_it_ends, lambda: _receive(socket, hub, viewer, reader))
    finally:
        hub.leave(viewer)
    if ends and ends[0] is not None:
        with suppress(*_gone()):
            await socket.close(*ends[0])


async def _send(socket: WebSocket, hub: Hub, viewer: Viewer) -> End:
    while True:
        parcel = await viewer.take(BEAT_S)
        if parcel.wants_state:
            await socket.send_text(hub.state_for(viewer))
        else:
            for message in parcel.messages:
                await socket.send_text(message)
        if parcel.picture is not None:
            await socket.send_bytes(parcel.picture)
        if parcel.closed:
            return GOING_AWAY, "the session ended"
        if not any(parcel):
            await socket.send_text('{"type": "beat"}')


async def _receive(socket: WebSocket, hub: Hub, viewer: Viewer, reader: Reader) -> End:
    orders, refusals = Bucket(ORDERS_PER_S, ORDERS_AT_ONCE), Bucket(1.0, PATIENCE)
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        try:
            if (picture := message.get("bytes")) is not None:
                # On another thread: decoding here would delay all viewers.
                await asyncio.to_thread(hub.camera.put, viewer.number, picture)
            elif not orders.take():
                raise Refused("too many messages in a short time")
            else:
                _obey(reader.read(message.get("text") or ""), hub, viewer)
        except Refused as refused:
            hub.tell_one(viewer, "refused", str(refused))
            if not refusals.take():
                return ABUSE, "too many refused messages"


def _obey(order: Command | Camera, hub: Hub, viewer: Viewer) -> None:
    """Carry out a page's order. Raises Refused."""
    if isinstance(order, Camera):
        if not order.on:
            hub.camera.release(viewer.number)
            return
        hub.camera.claim(viewer.number)
        if hub.camera.is_watched:
            return
        order = Switch(address=parse_address("browser"))
    if not hub.commands.put(order):
        raise Refused("too many requests are waiting")


def _gone() -> tuple[type[Exception], ...]:
    """The exceptions raised when a page disconnects during a send. Older packages raise RuntimeError."""
    from starlette.websockets import WebSocketDisconnect

    return WebSocketDisconnect, RuntimeError, OSError
