"""Malformed requests for hypothesis to draw: a good request with a value replaced, removed or added; a body that is not
JSON; or another path, header or method."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from .fakes import MODEL, data_url, image, jpegs, picture, says, text, user

SESSIONS = "/v1/streaming/sessions"
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
KINDS = ("application/json", "image/png", "text/plain", "multipart/form-data", "", "\x80/\xff", "application/json; x")
IDS = ("fuzz-1", "fuzz-2", "nobody", "..", "%00", "a b", "x" * 200, "é")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(
        ["", "data:", "data:image/png;base64,", "http://localhost/", "\ud800", "\x00", "<image>", "<|im_end|>", 2**63,
         -1, 1e308, "data:image/png;base64,iVBORw0KGgo=", "data:video/mp4;base64,AAAA", data_url(picture()[:40])]
    ),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def good_chat() -> dict[str, Any]:
    parts = [text("What?"), image(picture()), jpegs(picture(1), picture(2))]
    messages = [says("system", "Be brief."), user(*parts), says("assistant", "No."), user("Now?")]
    return {
        "model": MODEL, "messages": messages, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 3,
        "stop": ["x"], "stream": True, "stream_options": {"include_usage": True}, "n": 1, "tools": [],
        "media_io_kwargs": {"video": {"num_frames": 2}},
    }  # fmt: skip


GOOD = {CHAT: good_chat(), SESSIONS: {"id": "fuzz-1"}, f"{SESSIONS}/fuzz-1/ask": {"question": "What?", "max_tokens": 3}}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value inside `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


def exchanged(value: Any, place: tuple[Any, ...], new: Any, how: str) -> Any:
    """Return a copy where the value at `place` is replaced by `new`, removed, or given `new` as a sibling."""
    if not place:
        return new
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[key] = exchanged(copy[key], tuple(rest), new, how)
    elif how == "remove":
        del copy[key]
    elif how == "add" and isinstance(copy, dict):
        copy[f"{key}_"] = new
    elif how == "add":
        copy.append(new)
    else:
        copy[key] = new
    return copy


@st.composite
def spoilt_bodies(draw: Any) -> tuple[str, str, dict[str, str], bytes]:
    path = draw(st.sampled_from(sorted(GOOD)))
    good = GOOD[path]
    for _ in range(draw(st.integers(1, 3))):
        good = exchanged(
            good,
            draw(st.sampled_from(places(good))),
            draw(values),
            draw(st.sampled_from(["put", "put", "remove", "add"])),
        )
    return "POST", path, dict(JSON), json.dumps(good).encode()


@st.composite
def strange_requests(draw: Any) -> tuple[str, str, dict[str, str], bytes]:
    session = draw(st.sampled_from(IDS))
    path = draw(
        st.sampled_from([CHAT, SESSIONS, "/", "/v1/models", f"{SESSIONS}/{session}/frame", f"{SESSIONS}/{session}/ask",
                         f"{SESSIONS}/{session}", f"{SESSIONS}/fuzz-1/frame?frame_index=", "/v1/models/x",
                         "/openapi.json"])
    )  # fmt: skip
    if path.endswith("="):
        path += draw(st.sampled_from(["0", "1", "5", "-1", "x", "9" * 30]))
    headers = {"content-type": draw(st.sampled_from(KINDS))}
    name = draw(st.sampled_from(["", "x-session-id", "x-frame-index", "authorization", "origin", "expect"]))
    if name:
        headers[name] = draw(st.sampled_from(["", "fuzz-2", "x y", "7", "http://localhost:8000", "\xff"]))
    body = draw(
        st.one_of(
            st.binary(max_size=100), st.just(picture()), st.just(picture()[:50]),
            values.map(lambda value: json.dumps(value).encode()),
            st.sampled_from([b"", b"{", b"[" * 5000, b'{"a": NaN}', b"\xff\xfe{}", b'{"model": 1e400}', b"1" * 5000]),
        )
    )  # fmt: skip
    return draw(st.sampled_from(["GET", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])), path, headers, body


requests = st.one_of(spoilt_bodies(), spoilt_bodies(), strange_requests())
ALLOWED = {200, 400, 401, 403, 404, 405, 408, 413, 415, 429}
"""Allowed status codes: no 5xx."""
