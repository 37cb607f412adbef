"""Middleware for every request: authorization, rate limit, refusal during shutdown, and error responses.

Note: another site's page may make a browser send a request here. It cannot read the response, but would cost an
answer, so a request with another site's Origin is refused.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..web.access import Access
from .answers import Gone
from .errors import DENIED, INVALID, MISSING, Refused, refusal_of, response_of
from .limits import Limits, Rates
from .metrics import Metrics
from .work import Work

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN, UNCOUNTED = frozenset(("/healthz",)), frozenset(("/healthz", "/metrics"))
"""Paths that need no token; paths without a rate limit that also work during shutdown."""
CLIENT_WENT = 499


class Gate:
    """The middleware."""

    def __init__(
        self, app: ASGIApp, *, access: Access, limits: Limits, metrics: Metrics, work: Work,
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        """log: receives internal errors."""
        self._app, self._access, self._metrics, self._work, self._log = app, access, metrics, work, log
        self._rates = Rates(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import ClientDisconnect

        started, status = time.monotonic(), list[int]()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
            await send(message)

        try:
            await self._pass(scope, receive, noting)
        except (ClientDisconnect, Gone):
            if status:
                raise  # so that the connection is cut: the response is incomplete
            status.append(CLIENT_WENT)
        except Exception as error:
            self._metrics.failed(error)
            if refusal_of(error).status == 500:
                self._log(traceback.format_exc())
            if status:
                raise
            await response_of(error)(scope, receive, noting)
        finally:
            self._metrics.requested(_route(scope), status[0] if status else CLIENT_WENT, time.monotonic() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import HTTPConnection

        connection, path = HTTPConnection(scope), scope["path"]
        if path not in UNCOUNTED:
            self._rates.take(scope["client"][0] if scope.get("client") else "")
        if path not in OPEN:
            self._require_known(connection)
        if path in UNCOUNTED:
            await self._app(scope, receive, send)
            return
        with self._work.one():
            await self._app(scope, receive, send)

    def _require_known(self, connection: HTTPConnection) -> None:
        headers = connection.headers
        if not self._access.knows(authorization=headers.get("authorization", ""), cookies={}):
            raise Refused(
                "the token is missing or wrong; send it like an OpenAI key, in the header Authorization: Bearer TOKEN",
                status=401, kind=DENIED, code="invalid_api_key", headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        if not self._access.is_own(headers.get("origin"), headers.get("host", "")):
            raise Refused(
                "requests from another site's page are not allowed", status=403, kind=DENIED, code="wrong_origin"
            )


def _route(scope: Scope) -> str:
    """The route's path; request paths are unlimited in number and would not do as a metric label."""
    return getattr(scope.get("endpoint"), "route", "other")


async def told_by_starlette(request: Any, error: Any) -> Any:
    """Starlette's errors (unknown path, wrong method) in the same format as all other errors."""
    known = {
        404: "this path does not exist; /openapi.json lists all paths",
        405: "this path does not support this method; /openapi.json lists the methods",
    }
    message = known.get(error.status_code, str(error.detail))
    kind = MISSING if error.status_code == 404 else INVALID
    return response_of(Refused(message, status=error.status_code, kind=kind, headers=error.headers))
