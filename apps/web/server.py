"""The server of a session's page: uvicorn on a thread, from before the first frame until after the last."""

from __future__ import annotations

import asyncio
import errno
import importlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as Signal
from threading import Thread
from typing import TYPE_CHECKING, Literal

from engines.errors import BackendUnavailable

from ..browser import BrowserCamera
from ..capture import Captured
from ..figures import Figures
from ..listeners import Commands, Event
from ..overlay import Status
from ..watchdog import Watchdog
from .access import Access
from .app import make_app
from .health import Health
from .hub import Hub
from .metrics import Metrics
from .options import WebOptions
from .orders import Reader

if TYPE_CHECKING:
    from starlette.applications import Starlette

PACKAGES = ("starlette", "uvicorn", "websockets", "prometheus_client")
START_S, END_S = 10.0, 5.0
BEYOND_VIEWERS = 32  # connections for static files, health and metrics


class Page:
    """A Listener: the hub and the health of a session. `counted` is also called once per frame."""

    def __init__(self, hub: Hub, health: Health, server: Server, *, url: str) -> None:
        """url: confidential, since it contains the token."""
        self.hub, self.health, self.url = hub, health, url
        self._server = server

    def saw(self, captured: Captured, status: Status) -> None:
        self.health.saw(captured, status)
        self.hub.saw(captured, status)

    def said(self, question: str, text: str) -> None:
        self.hub.said(question, text)

    def happened(self, event: Event, captured: Captured) -> None:
        self.health.happened(event, captured)
        self.hub.happened(event, captured)

    def counted(self, figures: Figures) -> None:
        self.health.counted(figures)
        self.hub.counted(figures)

    def close(self) -> None:
        """Tell viewers that the session ended, and stop. May be called again."""
        self.health.close()
        self.hub.close()
        self._server.close()


@contextmanager
def open_page(
    options: WebOptions,
    *,
    commands: Commands,
    watchdog: Watchdog,
    camera: BrowserCamera | None = None,
    source: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Page]:
    """Serve a page inside the block.

    source  from the command line; the page may switch back to it
    say     receives the page's address

    Raises BackendUnavailable if a package is missing or the port is in use, ValueError for a guessable token.
    """
    require_packages()
    token = options.token()
    listening = bind(options.host, options.port)
    port = int(listening.getsockname()[1])
    access = Access.of(options, token=token, port=port)
    metrics = Metrics()
    hub = Hub(commands, options=options, camera=camera, metrics=metrics)
    health = Health(watchdog, num_viewers=lambda: hub.num_viewers)
    metrics.num_viewers, metrics.is_healthy = (lambda: hub.num_viewers), (lambda: health.report().is_well)
    reader = Reader(files=options.files, given=source)
    app = make_app(hub, access=access, reader=reader, health=health, metrics=metrics)
    server = Server(app, listening, max_message=2 * hub.camera.limits.max_bytes, connections=options.viewers)
    page = Page(hub, health, server, url=_url(options.host, port, token))
    try:
        server.start()
        say(f"Web page: {page.url}")
        yield page
    finally:
        page.close()


class Server:
    """uvicorn on a separate thread. The session keeps handling signals."""

    def __init__(
        self, app: Starlette, listening: socket.socket, *, max_message: int, connections: int,
        http: type[asyncio.Protocol] | Literal["auto"] = "auto", end_s: float = END_S,
    ) -> None:  # fmt: skip
        """max_message: largest WebSocket message in bytes; a larger one closes the connection. http: uvicorn's protocol
        or a subclass. end_s: time `close` waits for running responses."""
        import uvicorn

        config = uvicorn.Config(
            app, access_log=False, log_config=None, log_level="critical", server_header=False, lifespan="off",
            ws_max_size=max_message, ws_max_queue=4, ws_per_message_deflate=False,
            limit_concurrency=connections + BEYOND_VIEWERS, timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=16 * 1024, http=http,
        )  # fmt: skip
        self._server, self._listening = uvicorn.Server(config), listening
        self._end_s, self._has_ended = end_s, Signal()
        self._thread = Thread(target=self._run, name="page-server", daemon=True)

    def start(self) -> None:
        """Start, and return once it serves. Raises BackendUnavailable if it does not."""
        self._thread.start()
        waited_s = 0.0
        while not self._server.started:
            if self._has_ended.wait(0.02) or waited_s > START_S:
                raise BackendUnavailable(
                    "the web server did not start", fix="choose another --port, or leave out --web"
                )
            waited_s += 0.02

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=self._end_s)
        self._listening.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listening])
        finally:
            self._has_ended.set()


def require_packages(who: str = "--web") -> None:
    """Raise BackendUnavailable if a package needed for serving is missing; `who` names the user in the message."""
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise BackendUnavailable(
                f"{who} needs the package {package}", cause=str(error), fix="pip install 'pvc-streaming-export[live]'"
            ) from None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises BackendUnavailable, with the reason."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (socket.gaierror, UnicodeError):
        raise BackendUnavailable(
            f"--host {host} is not an address of this machine", expected="127.0.0.1, or 0.0.0.0 for all its addresses"
        ) from None
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise _not_bound(host, port, error) from None
    return listening


def _not_bound(host: str, port: int, error: OSError) -> BackendUnavailable:
    if error.errno == errno.EADDRINUSE:
        return BackendUnavailable(
            f"port {port} on {host} is in use",
            cause="another pvc-live, pvc-serve or other program uses it",
            fix=f"choose another: --port {port + 1 if port < 65535 else 8080}, or --port 0 for a free one",
        )
    if error.errno == errno.EACCES:
        return BackendUnavailable(
            f"this user may not open port {port}", expected="a port of 1024 or more", fix="--port 8080"
        )
    return BackendUnavailable(
        f"cannot serve on --host {host}: {error.strerror}", expected="an address of this machine, listed by: ip address"
    )


def _url(host: str, port: int, token: str | None) -> str:
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/" + ("" if token is None else f"?token={token}")
