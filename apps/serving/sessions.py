"""Sessions over HTTP: open a stream with memory, push its frames, ask, close.

POST   /v1/streaming/sessions               {"id": "door"}, or nothing
POST   /v1/streaming/sessions/door/frame    a JPEG or another picture; ?frame_index=7 makes a retry safe
POST   /v1/streaming/sessions/door/ask      {"question": "Who is there?", "stream": true}
DELETE /v1/streaming/sessions/door
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from .answers import AnswerEvents, unless_gone, whole_answer
from .body import body_of, require_kind
from .chat import SAMPLING, STREAMING, read_streaming, read_wanted
from .errors import Refused
from .fields import Fields, read_json
from .pictures import check_picture
from .replies import AskReply, closed_json, opened_json, pushed_json
from .service import Wanted
from .shared import Shared

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
HIGHEST_INDEX = 2**53 - 1  # the largest integer that all JSON parsers represent exactly
FRAME_INDEX = re.compile(r"[0-9]{1,16}")
JSON = "application/json"


class Sessions:
    """The endpoints of sessions."""

    def __init__(self, shared: Shared) -> None:
        self._shared, self._service = shared, shared.service

    async def open(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        async with body_of(
            request, self._shared.limits, self._shared.bodies, most=self._shared.limits.text_chars
        ) as body:
            session_id = None
            if body:
                require_kind(request, JSON)
                fields = Fields(read_json(body))
                fields.only(("id",))
                if fields["id"] is not None:
                    session_id = session_id_of(fields.text("id"), param="id")
            opened = await self._service.open(session_id)
        return JSONResponse(opened_json(opened, self._service.model_id), headers=frames_header(opened.num_frames))

    async def frame(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        shared, session_id = self._shared, session_id_of(request.path_params["session_id"], param="session_id")
        frame_index = frame_index_of(request)
        async with body_of(request, shared.limits, shared.bodies, most=shared.limits.picture_bytes) as body:
            require_kind(request, "image/jpeg", "image/*", "application/octet-stream")
            check_picture(body, shared.limits, name="the frame")
            pushed = await self._service.push(session_id, body, frame_index)
        shared.metrics.pushed(pushed)
        return JSONResponse(pushed_json(pushed, session_id), headers=frames_header(pushed.num_frames))

    async def ask(self, request: Request) -> Response | AnswerEvents:
        from starlette.responses import JSONResponse

        shared, session_id = self._shared, session_id_of(request.path_params["session_id"], param="session_id")
        async with body_of(request, shared.limits, shared.bodies) as body:
            require_kind(request, JSON)
            wanted, is_streamed, wants_usage = self._read(Fields(read_json(body)))
        pieces = self._service.ask(session_id, wanted)
        reply = AskReply(model=self._service.model_id, session_id=session_id)
        if is_streamed:
            return AnswerEvents(
                pieces, reply, shared.metrics, wants_usage=wants_usage, headers={}, send_s=shared.limits.send_s
            )
        told = await unless_gone(whole_answer(pieces, reply, shared.metrics), request.receive)
        return JSONResponse(told)

    async def close(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        session_id = session_id_of(request.path_params["session_id"], param="session_id")
        await self._service.close(session_id)
        return JSONResponse(closed_json(session_id))

    def _read(self, fields: Fields) -> tuple[Wanted, bool, bool]:
        """The question, whether to stream the answer, and whether to send its usage. Raises Refused."""
        fields.only(("question", "keep", *SAMPLING, *STREAMING))
        question = fields.text("question")
        if not question.strip() or len(question) > self._shared.limits.text_chars:
            raise fields.wrong("question", f"is not a string of 1 to {self._shared.limits.text_chars} characters")
        wanted = replace(
            read_wanted(fields, self._shared.limits), question=question, keep=fields.flag("keep", default=False)
        )
        return wanted, *read_streaming(fields)


def session_id_of(text: str, *, param: str) -> str:
    """Return the id. Raises Refused if it is not valid."""
    if not SESSION_ID.fullmatch(text):
        raise Refused(
            f"{param} is not a valid session id; expected 1 to 128 letters, digits and . _ : -, starting with a letter "
            "or digit",
            param=param,
        )
    return text


def frame_index_of(request: Request) -> int | None:
    """The index in ?frame_index= or the header X-Frame-Index. Raises Refused if it is invalid, or if both differ."""
    told = {*request.query_params.getlist("frame_index"), *request.headers.getlist("x-frame-index")}
    if not told:
        return None
    (text, *others) = told
    if others or not FRAME_INDEX.fullmatch(text) or int(text) > HIGHEST_INDEX:
        raise Refused("frame_index is not a single whole number of 0 or more", param="frame_index")
    return int(text)


def frames_header(num_frames: int) -> dict[str, str]:
    return {"pvc-frames": str(num_frames)}
