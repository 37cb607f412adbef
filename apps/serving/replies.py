"""Responses as JSON: OpenAI's chat completions, and the responses of sessions."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from .service import Opened, Piece, Pushed, Usage

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """The JSON of one completion; all its parts have the same id and time."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Piece) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish, "logprobs": None}
        return self._about("chat.completion", choices=[choice], usage=usage_json(last.usage))

    def begun(self, *, wants_usage: bool) -> list[Json]:
        return [self._chunk({"role": "assistant", "content": ""}, None, wants_usage=wants_usage)]

    def more(self, piece: Piece, *, wants_usage: bool) -> list[Json]:
        """The chunks of a piece; after the last piece's, the usage, if requested."""
        chunks = []
        if piece.text:
            chunks.append(self._chunk({"content": piece.text}, None, wants_usage=wants_usage))
        if piece.finish is not None:
            chunks.append(self._chunk({}, piece.finish, wants_usage=wants_usage))
            if wants_usage:
                chunks.append(self._about("chat.completion.chunk", choices=[], usage=usage_json(piece.usage)))
        return chunks

    def _chunk(self, delta: Json, finish: str | None, *, wants_usage: bool) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        usage = {"usage": None} if wants_usage else {}
        return self._about("chat.completion.chunk", choices=[choice], **usage)

    def _about(self, kind: str, **fields: Any) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **fields}


@dataclass(frozen=True, kw_only=True, slots=True)
class AskReply:
    """The JSON of an answer to a question to a session."""

    model: str
    session_id: str
    id: str = field(default_factory=lambda: f"answer-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Piece) -> Json:
        return self._about("streaming.answer", text=text, finish_reason=last.finish, usage=usage_json(last.usage))

    def begun(self, *, wants_usage: bool) -> list[Json]:
        return []

    def more(self, piece: Piece, *, wants_usage: bool) -> list[Json]:
        told = self._about("streaming.answer.chunk", text=piece.text, finish_reason=piece.finish)
        return [told if piece.finish is None else {**told, "usage": usage_json(piece.usage)}]

    def _about(self, kind: str, **fields: Any) -> Json:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**about, "session_id": self.session_id, **fields}


def usage_json(usage: Usage | None) -> Json | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens, "num_frames": usage.num_frames,
    }  # fmt: skip


def models_json(model_id: str, created: int) -> Json:
    return {"object": "list", "data": [model_json(model_id, created)]}


def model_json(model_id: str, created: int) -> Json:
    return {"id": model_id, "object": "model", "created": created, "owned_by": "pvc-serve"}


def opened_json(opened: Opened, model: str) -> Json:
    about = {"id": opened.id, "object": "streaming.session", "created": int(time.time()), "model": model}
    return {**about, "num_frames": opened.num_frames, "lost": opened.lost}


def pushed_json(pushed: Pushed, session_id: str) -> Json:
    return {
        "object": "streaming.frame", "session_id": session_id, "frame_index": pushed.frame_index,
        "is_repeated": pushed.is_repeated, "is_dropped": pushed.is_dropped, "gap": pushed.gap,
        "num_frames": pushed.num_frames, "vision_ms": round(pushed.vision_ms, 3),
        "ingest_ms": round(pushed.ingest_ms, 3), "lost": pushed.lost,
    }  # fmt: skip


def closed_json(session_id: str) -> Json:
    return {"id": session_id, "object": "streaming.session", "deleted": True}
