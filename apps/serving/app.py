"""All routes as one ASGI app, over any Service: the streams of this process, or the replicas of a cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..web.access import Access
from ..web.app import Guard
from .completions import Completions
from .errors import DENIED, MISSING, Refused, response_of
from .gate import Gate, told_by_starlette
from .limits import Bodies, Limits
from .metrics import Metrics
from .openapi import document
from .replies import model_json, models_json
from .service import Service
from .sessions import Sessions
from .shared import Shared
from .work import Work

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response


def make_app(
    service: Service,
    *,
    access: Access,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    work: Work | None = None,
    log: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Starlette:
    """Build the app. Needs starlette and prometheus_client.

    work  lets the caller shut the server down: `refuse_more`, then `wait`
    log   receives internal errors with their traceback
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    limits, metrics, work = limits or Limits(), metrics or Metrics(), work or Work()
    shared = Shared(service=service, limits=limits, metrics=metrics, bodies=Bodies(limits))
    metrics.gauges["pvc_requests_running"] = ("Requests in progress.", lambda: work.num_running)
    metrics.gauges["pvc_body_bytes"] = ("Bytes of request bodies in memory.", lambda: shared.bodies.num_bytes)
    about, sessions = _About(shared, work), Sessions(shared)
    named: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/v1/models", about.models),
        ("GET", "/v1/models/{model}", about.model),
        ("POST", "/v1/chat/completions", Completions(shared).complete),
        ("POST", "/v1/streaming/sessions", sessions.open),
        ("POST", "/v1/streaming/sessions/{session_id}/frame", sessions.frame),
        ("POST", "/v1/streaming/sessions/{session_id}/ask", sessions.ask),
        ("DELETE", "/v1/streaming/sessions/{session_id}", sessions.close),
        ("GET", "/healthz", about.health),
        ("GET", "/metrics", about.metrics),
        ("GET", "/openapi.json", about.openapi),
    ]
    routes = [Route(path, _named(path, endpoint), methods=[method]) for method, path, endpoint in named]
    middleware = [
        Middleware(Guard, access=access, refused=lambda text: response_of(_wrong_host(text))),
        Middleware(Gate, access=access, limits=limits, metrics=metrics, work=work, log=log),
    ]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: told_by_starlette})
    app.router.redirect_slashes = False
    return app


def _named(path: str, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """The endpoint, labelled with its route for the metrics."""

    async def named(request: Request) -> Any:
        return await endpoint(request)

    named.route = path  # type: ignore[attr-defined]
    return named


def _wrong_host(text: str) -> Refused:
    return Refused(text, status=403, kind=DENIED, code="wrong_host")


class _About:
    """Endpoints about the server: models, health, metrics, OpenAPI."""

    def __init__(self, shared: Shared, work: Work) -> None:
        self._shared, self._work = shared, work

    async def models(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse(models_json(self._shared.service.model_id, self._shared.created))

    async def model(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        model_id = self._shared.service.model_id
        if request.path_params["model"] != model_id:
            raise Refused(
                f"this model is not served here; the model is {model_id}",
                status=404,
                kind=MISSING,
                code="model_not_found",
            )
        return JSONResponse(model_json(model_id, self._shared.created))

    async def health(self, request: Request) -> Response:
        """200, or 503 while shutting down, so that a load balancer stops sending requests."""
        from starlette.responses import JSONResponse

        is_well = not self._work.is_draining
        return JSONResponse({"ok": is_well}, 200 if is_well else 503)

    async def metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        text, kind = self._shared.metrics.text()
        return Response(text, headers={"content-type": kind})

    async def openapi(self, request: Request) -> Response:
        from starlette.responses import Response

        told = document(self._shared.service.model_id, self._shared.limits)
        return Response(json.dumps(told), media_type="application/json")
