"""Error responses to clients, in OpenAI's format and with a fitting HTTP status.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engines.errors import BackendUnavailable, FrameError, MediaError, NonFiniteError, PVCError, StreamError, StreamFull
from engines.many.handle import Busy

from .service import NoSession

if TYPE_CHECKING:
    from starlette.responses import Response

INVALID, BUSY, DENIED, MISSING, OURS = (
    "invalid_request_error", "rate_limit_error", "authentication_error", "not_found_error", "server_error"
)  # fmt: skip
"""Types of errors."""


class Refused(Exception):
    """A refused request. `message` is for the client; param: the field at fault, if it is one."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind, self.param, self.code = message, status, kind, param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


def come_again(message: str, *, after_s: float, status: int = 429, code: str = "busy") -> Refused:
    """A refusal for now: the client may retry, probably with success after after_s."""
    after_s = max(after_s, 0.001)
    headers = {"retry-after": str(math.ceil(after_s)), "retry-after-ms": str(math.ceil(1e3 * after_s))}
    return Refused(message, status=status, kind=BUSY if status == 429 else OURS, code=code, headers=headers)


def too_large(message: str, *, param: str | None = None) -> Refused:
    return Refused(message, status=413, param=param, code="too_large")


def refusal_of(error: BaseException) -> Refused:
    """The response to any error. An error that is not a PVCError is an internal defect: its details stay in the log."""
    match error:
        case Refused():
            return error
        case Busy():
            return come_again(str(error), after_s=error.retry_after_s)
        case NoSession():
            return Refused(str(error), status=404, kind=MISSING, code="session_not_found")
        case StreamFull():
            return Refused(str(error), code="context_length_exceeded")
        case NonFiniteError():
            return Refused(str(error), status=500, kind=OURS, code="model_failed")
        case FrameError() | MediaError():
            return Refused(str(error), code="invalid_media")
        case BackendUnavailable():
            return Refused(str(error), status=501, kind=OURS, code="not_available")
        case StreamError():
            return Refused(str(error))
        case MemoryError():
            return come_again(
                "the server does not have enough free memory now", after_s=10.0, status=503, code="no_memory"
            )
        case PVCError():
            return Refused(str(error), status=500, kind=OURS)
    return Refused("internal error; see the server's log", status=500, kind=OURS, code="internal_error")


def response_of(error: BaseException) -> Response:
    """Needs starlette."""
    from starlette.responses import Response

    refused = refusal_of(error)
    told = json.dumps(refused.to_json())  # ASCII, since text quoted from a request may be invalid Unicode
    return Response(told, refused.status, headers=refused.headers, media_type="application/json")
