"""The page as an ASGI app, usable alone or mounted next to other apps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engines.terminal import finite

from .access import COOKIE_AGE_S, PAGE_HEADERS, Access
from .connection import UNAUTHORIZED, serve_viewer
from .health import Health
from .hub import Hub
from .metrics import Metrics
from .orders import Reader

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocket

STATIC = Path(__file__).parent / "static"


def make_app(
    hub: Hub, *, access: Access, reader: Reader, health: Health | None = None, metrics: Metrics | None = None
) -> Starlette:
    """The app: GET / and /static/, a WebSocket at /ws, and optionally /healthz and /metrics. Needs starlette."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles

    page = _Page(hub, access, reader, health, metrics)
    routes: list[BaseRoute] = [
        Route("/", page.index, methods=["GET"]),
        Mount("/static", StaticFiles(directory=STATIC)),
        WebSocketRoute("/ws", page.socket),
    ]
    if health is not None:
        routes.append(Route("/healthz", page.healthz, methods=["GET"]))
    if metrics is not None:
        routes.append(Route("/metrics", page.metrics, methods=["GET"]))
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access)])


class Guard:
    """Middleware that refuses unknown host names and other sites' pages, and adds the page's headers to responses."""

    def __init__(self, app: ASGIApp, access: Access, refused: Callable[[str], Response] | None = None) -> None:
        """refused: builds the response with status 403 from the reason; by default plain text."""
        self._app, self._access, self._refused = app, access, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse

        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = HTTPConnection(scope).headers
        host, is_socket = headers.get("host", ""), scope["type"] == "websocket"
        if not self._access.serves(host):
            refusal = "This host name is not served here. For a reverse proxy, start with --served-as NAME.\n"
        elif is_socket and not self._access.is_own(headers.get("origin"), host):
            refusal = "Pages of other sites may not connect.\n"
        else:
            await self._app(scope, receive, send if is_socket else _with_headers(send))
            return
        if is_socket:
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        else:
            response = PlainTextResponse(refusal, 403) if self._refused is None else self._refused(refusal.strip())
            await response(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Send:
    from starlette.datastructures import MutableHeaders

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(PAGE_HEADERS)
        await send(message)

    return send_with_headers


class _Page:
    """The endpoints of the page."""

    def __init__(
        self, hub: Hub, access: Access, reader: Reader, health: Health | None, metrics: Metrics | None
    ) -> None:
        self._hub, self._access, self._reader, self._health, self._metrics = hub, access, reader, health, metrics

    async def index(self, request: Request) -> Response:
        """The page. With ?token= the response sets the cookie, and the page removes the token from its address.

        Not by a redirect: after a link from another site, the browser would not send the cookie with it.
        """
        from starlette.responses import FileResponse

        if not self._is_known(request):
            return FileResponse(STATIC / "token.html", 401)
        page = FileResponse(STATIC / "index.html")
        if self._access.token is not None and request.query_params.get("token"):
            page.set_cookie(
                self._access.cookie, self._access.token, max_age=COOKIE_AGE_S, httponly=True, samesite="strict",
                secure=request.url.scheme == "https",
            )  # fmt: skip
        return page

    async def socket(self, socket: WebSocket) -> None:
        if self._is_known(socket):
            await serve_viewer(socket, self._hub, self._reader)
        else:
            await socket.accept()  # only so that the page gets the close code
            await socket.close(UNAUTHORIZED, "the token is missing or wrong")

    async def healthz(self, request: Request) -> Response:
        """The health report; without the token only `ok`."""
        from starlette.responses import Response

        assert self._health is not None
        report = self._health.report()
        told = report.to_json() if self._is_known(request) else {"ok": report.is_well}
        text = json.dumps(finite(told))  # ASCII, since a source's name may be invalid Unicode
        return Response(text, 200 if report.is_well else 503, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse, Response

        assert self._metrics is not None
        if not self._is_known(request):
            return PlainTextResponse("The token is missing or wrong.\n", 401, {"www-authenticate": "Bearer"})
        text, kind = self._metrics.text()
        return Response(text, headers={"content-type": kind})

    def _is_known(self, connection: HTTPConnection) -> bool:
        return self._access.knows(
            authorization=connection.headers.get("authorization", ""),
            cookies=connection.cookies,
            query_token=connection.query_params.get("token", ""),
        )
