"""One viewer's WebSocket: what waits for it goes out, and what it asks for comes in."""

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

BEAT_S = 4.0  # without anything to tell, until a sign of life: a page that hears nothing for longer connects anew
ORDERS_PER_S, ORDERS_AT_ONCE = 5.0, 20
PATIENCE = 200  # refusals, one a second forgiven, after which a page is shut out
UNAUTHORIZED, TOO_MANY, ABUSE, GOING_AWAY = 4401, 4429, 4408, 1001
End = tuple[int, str] | None
"""Code and reason that a half of a connection ends it with; None where the page has gone."""


async def serve_viewer(socket: WebSocket, hub: Hub, reader: Reader) -> None:
    """Until it goes, or the session ends. The socket is not accepted yet."""
    import anyio

    await socket.accept()
    viewer = hub.join()
    if viewer is None:
        await socket.close(TOO_MANY, f"{hub.options.viewers} viewers look already")
        return
    ends: list[End] = []
    try:
        async with anyio.create_task_group() as group:

            async def until_it_ends(half: Callable[[], Awaitable[End]]) -> None:
                with suppress(*_gone()):
                    ends.append(await half())
                group.cancel_scope.cancel()  # one half ended, so the other has nobody to speak to

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
                # On another thread: what is decoded here would hold up all viewers.
                await asyncio.to_thread(hub.camera.put, viewer.number, picture)
            elif not orders.take():
                raise Refused("too many messages at once")
            else:
                _obey(reader.read(message.get("text") or ""), hub, viewer)
        except Refused as refused:
            hub.tell_one(viewer, "refused", str(refused))
            if not refusals.take():
                return ABUSE, "too much was refused"


def _obey(order: Command | Camera, hub: Hub, viewer: Viewer) -> None:
    """Raises Refused."""
    if isinstance(order, Camera):
        if not order.on:
            hub.camera.release(viewer.number)
            return
        hub.camera.claim(viewer.number)
        if hub.camera.is_watched:
            return
        order = Switch(address=parse_address("browser"))
    if not hub.commands.put(order):
        raise Refused("too much waits to be done")


def _gone() -> tuple[type[Exception], ...]:
    """What is raised when a page is closed while it is told something. Older packages raise a RuntimeError."""
    from starlette.websockets import WebSocketDisconnect

    return WebSocketDisconnect, RuntimeError, OSError
