"""The OpenAPI document of the server. A test sends allowed and forbidden requests and checks the responses against it.

Note: errors a schema cannot express (a damaged picture in a data URL, a question longer than the context) are also
refused with 400.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from .chat import LABELS, ONLY_DEFAULT
from .fields import LONGEST_NUMBER
from .limits import Limits
from .pictures import encode_frame
from .sessions import HIGHEST_INDEX, SESSION_ID

Json = dict[str, Any]
TEXT, NUMBER, WHOLE, FLAG = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
EVENT: Json = {
    "description": "Server-sent events. data is a JSON object, also for an error; in the last event it is [DONE].",
    "type": "object",
    "properties": {"data": TEXT, "event": TEXT},
    "required": ["data"],
}
ERRORS = {
    "400": "The request is invalid; the message states what is wrong and what was expected.",
    "401": "The token is missing or wrong.",
    "403": "The host name is not served, or the request comes from another site's page.",
    "404": "This session or model does not exist.",
    "405": "This path does not support this method.",
    "408": "The body was not received in time.",
    "413": "The body is too large.",
    "415": "The body's Content-Type is not supported.",
    "429": "Too many requests, or a queue is full. Retry after the seconds in Retry-After.",
    "500": "Internal error, or the model's output is not finite.",
    "501": "The server lacks a required component, such as a video decoder.",
    "503": "The server is shutting down or out of memory. Retry after the seconds in Retry-After.",
}


def document(model_id: str, limits: Limits) -> Json:
    """The document of a server with these limits."""
    session = [{"name": "session_id", "in": "path", "required": True, "schema": _session_id()}]
    frame = [*session, _frame_index("frame_index", "query"), _frame_index("X-Frame-Index", "header")]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pvc-serve",
            "version": "1",
            "description": "Answers questions about pictures, videos, and sessions (frame streams with memory).",
        },
        "components": {
            "schemas": _schemas(model_id, limits),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
        "paths": {
            "/v1/models": {"get": _operation("models", "List the served model.", "Models")},
            "/v1/models/{model}": {
                "get": _operation("model", "Describe the served model.", "Model", parameters=[
                    {"name": "model", "in": "path", "required": True, "schema": TEXT}
                ])
            },
            "/v1/chat/completions": {
                "post": _operation(
                    "chat", "Answer a question, as OpenAI's chat completions.", "Completion", body=_chat(model_id),
                    streams=True,
                    parameters=[
                        {"name": "X-Session-Id", "in": "header", "schema": _session_id(),
                         "description": "The pictures become this session's next frames. It is opened if necessary."},
                        _frame_index("X-Frame-Index", "header"),
                    ],
                )
            },
            "/v1/streaming/sessions": {
                "post": _linked(_operation("open", "Open a session, or find an open one.", "Session", body={
                    **_json("OpenRequest"), "required": False
                }))
            },
            "/v1/streaming/sessions/{session_id}": {
                "delete": _operation("close", "Delete the session.", "Closed", parameters=session)
            },
            "/v1/streaming/sessions/{session_id}/frame": {
                "post": _operation("frame", "Push the next frame.", "Frame", body=_picture(), parameters=frame)
            },
            "/v1/streaming/sessions/{session_id}/ask": {
                "post": _operation(
                    "ask", "Ask about all frames of the session so far.", "Answer", body=_json("AskRequest"),
                    streams=True, parameters=session,
                )
            },
            "/healthz": {"get": {**_operation("health", "Whether it accepts requests.", "Health"), "security": []}},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _operation("openapi", "This document.", None)},
        },
    }  # fmt: skip


def _operation(
    name: str, says: str, schema: str | None, *, body: Json | None = None, parameters: list[Json] | None = None,
    streams: bool = False,
) -> Json:  # fmt: skip
    content: Json = {"application/json": {"schema": {"type": "object"} if schema is None else _ref(schema)}}
    if streams:
        content["text/event-stream"] = {"schema": EVENT}
    operation: Json = {
        "operationId": name,
        "summary": says,
        "responses": {"200": {"description": says, "content": content}, **_errors()},
    }
    if body is not None:
        operation["requestBody"] = body
    if parameters:
        operation["parameters"] = parameters
    return operation


def _linked(operation: Json) -> Json:
    """Add links to the operations on the opened session."""
    parameters = {"session_id": "$response.body#/id"}
    links = {name: {"operationId": name, "parameters": parameters} for name in ("frame", "ask", "close")}
    operation["responses"]["200"]["links"] = links
    return operation


def _errors() -> Json:
    content = {"application/json": {"schema": _ref("Error")}}
    headers = {"Retry-After": {"schema": TEXT, "description": "Seconds to wait."}}
    return {
        status: {"description": says, "content": content, **({"headers": headers} if status in ("429", "503") else {})}
        for status, says in ERRORS.items()
    }


def _metrics() -> Json:
    operation = _operation("metrics", "Metrics in Prometheus' text format.", None)
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": TEXT}}
    return operation


def _picture() -> Json:
    kinds = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
    return {"required": True, "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}}


def _json(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}


def _chat(model_id: str) -> Json:
    """The chat request's body, with an example of each kind."""
    picture = base64.b64encode(encode_frame(np.full((8, 8, 3), 128, np.uint8))).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{picture},{picture}"}}
    text = {"type": "text", "text": "What is it?"}
    asked: dict[str, Any] = {"words": "What is it?", "picture": [text, image], "video": [video, text]}
    body = _json("ChatRequest")
    body["content"]["application/json"]["examples"] = {
        name: {"value": {"model": model_id, "messages": [{"role": "user", "content": content}], "max_tokens": 8}}
        for name, content in asked.items()
    }
    return body


def _frame_index(name: str, where: str) -> Json:
    return {
        "name": name, "in": where, "schema": {"type": "integer", "minimum": 0, "maximum": HIGHEST_INDEX},
        "description": "Index of the frame, or of the first of several. A frame sent again is not pushed twice.",
    }  # fmt: skip


def _session_id() -> Json:
    return {"type": "string", "pattern": f"^{SESSION_ID.pattern}$"}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] = (), /, **properties: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _all(**properties: Any) -> Json:
    """An object in which all properties are required."""
    return _object(tuple(properties), **properties)


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas(model_id: str, limits: Limits) -> Json:
    asked = _asked(limits)
    text = {"type": "string", "minLength": 1, "maxLength": limits.text_chars, "pattern": r"\S"}
    return {
        **_contents(limits),
        **_answers(),
        "ChatRequest": _object(
            ("model", "messages"),
            model={"const": model_id},
            messages={"type": "array", "items": _ref("Message"), "minItems": 1, "maxItems": limits.messages},
            media_io_kwargs=_or_null(_object(video=_or_null(_object(
                num_frames=_or_null({"type": "integer", "minimum": 1, "maximum": limits.video_frames}),
                fps=_or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 1000}),
            )))),
            **asked,
            **{label: _or_null(TEXT) for label in LABELS},
            **{name: {"enum": [*values, None]} for name, values in ONLY_DEFAULT.items()},
        ),
        "OpenRequest": _object(id=_or_null(_session_id())),
        "AskRequest": _object(("question",), question=text, keep=_or_null(FLAG), **asked),
        "Health": _all(ok=FLAG),
        "Error": _all(error=_all(
            message=TEXT, type=TEXT, param=_or_null(TEXT), code=_or_null(TEXT)
        )),
    }  # fmt: skip


def _asked(limits: Limits) -> Json:
    tokens = _or_null({"type": "integer", "minimum": 1, "maximum": limits.answer_tokens})
    stop = {"type": "string", "minLength": 1, "maxLength": 256}
    return {
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "temperature": _or_null({"type": "number", "minimum": 0, "maximum": 2}),
        "top_p": _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "seed": _or_null({"type": "integer", "minimum": -LONGEST_NUMBER, "maximum": LONGEST_NUMBER - 1}),
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": 4}, {"type": "null"}]},
        "stream": _or_null(FLAG),
        "stream_options": _or_null(_object(include_usage=_or_null(FLAG), include_obfuscation={"enum": [False, None]})),
    }


def _contents(limits: Limits) -> Json:
    url = {"type": "string", "pattern": "^data:"}
    image = _object(("url",), url=url, detail={"enum": ["auto", "high", None]})
    parts = {
        "text": _object(("type", "text"), type={"const": "text"}, text=TEXT),
        "image_url": _object(("type", "image_url"), type={"const": "image_url"}, image_url=image),
        "video_url": _object(("type", "video_url"), type={"const": "video_url"}, video_url=_object(("url",), url=url)),
    }
    own = {
        "name": {"type": "null"}, "refusal": {"type": "null"}, "audio": {"type": "null"},
        "tool_calls": {"enum": [[], None]}, "function_call": {"type": "null"}, "annotations": {"enum": [[], None]},
    }  # fmt: skip

    def message(roles: list[str], kinds: list[Json]) -> Json:
        content = {"anyOf": [TEXT, {"type": "array", "items": {"anyOf": kinds}, "minItems": 1}]}
        return _object(("role", "content"), role={"enum": roles}, content=content, **own)

    return {
        "Message": {
            "anyOf": [
                message(["user"], list(parts.values())),
                message(["system", "developer", "assistant"], [parts["text"]]),
            ]
        }
    }


def _answers() -> Json:
    usage = _or_null(_all(prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE, num_frames=WHOLE))
    finish = {"enum": ["stop", "length"]}
    message = _all(role={"const": "assistant"}, content=TEXT, refusal={"type": "null"})
    choice = _all(index=WHOLE, message=message, finish_reason=finish, logprobs={"type": "null"})
    about = {"id": TEXT, "created": WHOLE, "model": TEXT}
    model = _all(id=TEXT, object={"const": "model"}, created=WHOLE, owned_by=TEXT)
    return {
        "Model": model,
        "Models": _all(object={"const": "list"}, data={"type": "array", "items": model}),
        "Completion": _all(
            **about, object={"const": "chat.completion"}, choices={"type": "array", "items": choice}, usage=usage
        ),
        "Answer": _all(
            **about, object={"const": "streaming.answer"}, session_id=TEXT, text=TEXT, finish_reason=finish, usage=usage
        ),
        "Session": _all(**about, object={"const": "streaming.session"}, num_frames=WHOLE, lost=TEXT),
        "Closed": _all(id=TEXT, object={"const": "streaming.session"}, deleted={"const": True}),
        "Frame": _all(
            object={"const": "streaming.frame"}, session_id=TEXT, frame_index=WHOLE, is_repeated=FLAG, is_dropped=FLAG,
            gap=WHOLE, num_frames=WHOLE, vision_ms=NUMBER, ingest_ms=NUMBER, lost=TEXT,
        ),
    }  # fmt: skip
