"""Test events and frames, and scripted network servers: a web server and an MQTT broker."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event as Flag
from threading import Thread
from typing import Any

from apps.capture import Captured
from apps.listeners import Event, EventKind
from apps.overlay import Status

from ..fakes import picture

STATUS = Status(figures=(), question="", reply=None, random_weights=False, notice="")


def event(text: str = "A ball.", *, kind: EventKind = "answer", frame: int = 0, **fields: Any) -> Event:
    """An event at frame / 10 seconds."""
    known: dict[str, Any] = {"time_s": frame / 10, "question": "What is there?"} | fields
    if kind == "answer":
        known["answer"] = text
    return Event(kind=kind, text=text, frame=frame, **known)


def captured(index: int = 0, *, value: int = 3, time_s: float | None = None) -> Captured:
    return Captured(
        bgr=picture(value), index=index, time_s=index / 10 if time_s is None else time_s, captured_at=time.monotonic()
    )


def wait_until(is_so: Callable[[], object], *, within_s: float = 5.0) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.002)


class Follower:
    """A Listener that records what it receives."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.seen: list[int] = []
        self.texts: list[str] = []
        self.is_closed = False

    def saw(self, captured: Captured, status: Status) -> None:
        self.seen.append(captured.index)

    def said(self, question: str, text: str) -> None:
        self.texts.append(text)

    def happened(self, event: Event, captured: Captured) -> None:
        assert not self.is_closed
        self.events.append(event)

    def close(self) -> None:
        self.is_closed = True


class WebServer:
    """Answer each POST with the next of the given codes and repeat the last one; code 0 hangs until `close`."""

    def __init__(self, *codes: int) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.methods: list[str] = []
        left, self._released, server = list(codes), Flag(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                server.methods.append(self.command)
                server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                server.headers.append(dict(self.headers))
                code = left.pop(0) if len(left) > 1 else left[0]
                if code == 0:
                    server._released.wait(20)
                    return
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/secret"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Broker:
    """Enough of an MQTT 3.1.1 broker for one client: CONNECT, PUBLISH with QoS 1, PINGREQ, DISCONNECT.

    code     return code of every CONNACK: 0 accepts, 5 is "not authorized"
    is_away  connections are closed immediately
    is_deaf  messages are received, but not acknowledged
    """

    def __init__(self, *, code: int = 0) -> None:
        self.code, self.is_away, self.is_deaf = code, False, False
        self.published: list[tuple[str, bytes, bool]] = []  # topic, payload, retained or not
        self.users: list[tuple[str, str]] = []
        self.duplicates: list[str] = []  # topics of messages that were sent again and marked as duplicates
        self.num_pings = 0
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for name, payload, _ in self.published if name == topic]

    def go_away(self) -> None:
        """Close every connection, and accept none until `is_away` is False."""
        self.is_away = True
        for connection in self._connections:
            _hang_up(connection)

    def close(self) -> None:
        self.go_away()
        _hang_up(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.is_away:
                connection.close()
                continue
            self._connections.append(connection)
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        will: tuple[str, bytes, bool] | None = None
        with connection, connection.makefile("rb") as stream:
            try:
                while (first := stream.read(1)) != b"":
                    kind, flags = first[0] >> 4, first[0] & 15
                    body = stream.read(_length(stream))
                    if kind == 1:
                        will = self._connect(body)
                        connection.sendall(bytes([0x20, 2, 0, self.code]))
                        if self.code:
                            return
                    elif kind == 3:
                        self._publish(connection, flags, body)
                    elif kind == 12:
                        self.num_pings += 1
                        connection.sendall(bytes([0xD0, 0]))
                    elif kind == 14:
                        will = None
                        return
            except OSError:
                pass
            finally:
                if will is not None and not self.code:
                    self.published.append(will)

    def _connect(self, body: bytes) -> tuple[str, bytes, bool] | None:
        assert body[:7] == b"\x00\x04MQTT\x04"
        flags, fields, rest = body[7], [], body[10:]
        while rest:
            (size,) = struct.unpack(">H", rest[:2])
            fields.append(rest[2 : 2 + size])
            rest = rest[2 + size :]
        fields.pop(0)  # the client's name
        will = (fields.pop(0).decode(), fields.pop(0), bool(flags & 0x20)) if flags & 0x04 else None
        user = fields.pop(0).decode() if flags & 0x80 else ""
        password = fields.pop(0).decode() if flags & 0x40 else ""
        self.users.append((user, password))
        return will

    def _publish(self, connection: socket.socket, flags: int, body: bytes) -> None:
        assert flags >> 1 & 3 == 1, "QoS 1"
        (size,) = struct.unpack(">H", body[:2])
        topic, mid, payload = body[2 : 2 + size].decode(), body[2 + size : 4 + size], body[4 + size :]
        self.duplicates += [topic] * (flags >> 3)
        self.published.append((topic, payload, bool(flags & 1)))
        if not self.is_deaf:
            connection.sendall(b"\x40\x02" + mid)


def _length(stream: Any) -> int:
    """Read MQTT's remaining length: seven bits per byte, the lowest first."""
    length, shift = 0, 0
    while True:
        byte = stream.read(1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return length


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
