"""A Service that computes nothing, and pictures to send to it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from apps.serving.service import NoSession, Opened, Piece, Pushed, Usage, Wanted

MODEL = "pvc-vision-fake"


@dataclass
class FakeService:
    """Answer with `words`, and record the requests.

    pause         if set, answers wait for it before their second piece
    raises        an exception raised instead of an answer
    raises_later  an exception raised after the first piece
    ended         how each answer ended, "whole" or "cut"
    """

    words: tuple[str, ...] = ("It ", "is ", "red.")
    raises: Exception | None = None
    raises_later: Exception | None = None
    pause: asyncio.Event | None = None
    sessions: dict[str, list[bytes]] = field(default_factory=dict)
    asked: list[tuple[Any, Wanted]] = field(default_factory=list)
    pushed: list[tuple[str, int | None]] = field(default_factory=list)
    num_begun: int = 0
    ended: list[str] = field(default_factory=list)

    @property
    def model_id(self) -> str:
        return MODEL

    def complete(self, frames: tuple[bytes, ...], wanted: Wanted) -> AsyncGenerator[Piece, None]:
        self.asked.append((frames, wanted))
        return self._answer(len(frames))

    async def open(self, session_id: str | None = None) -> Opened:
        session_id = session_id or f"new-{len(self.sessions)}"
        return Opened(id=session_id, num_frames=len(self.sessions.setdefault(session_id, [])))

    async def push(self, session_id: str, picture: bytes, frame_index: int | None = None) -> Pushed:
        frames = self._find(session_id)
        self.pushed.append((session_id, frame_index))
        frames.append(picture)
        index = len(frames) - 1 if frame_index is None else frame_index
        return Pushed(frame_index=index, num_frames=len(frames), gap=index - len(frames) + 1, vision_ms=1.0)

    def ask(self, session_id: str, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        self.asked.append((session_id, wanted))
        return self._answer(len(self._find(session_id)))

    async def close(self, session_id: str) -> None:
        self._find(session_id)
        del self.sessions[session_id]

    def _find(self, session_id: str) -> list[bytes]:
        if session_id not in self.sessions:
            raise NoSession(f"session '{session_id}' does not exist")
        return self.sessions[session_id]

    async def _answer(self, num_frames: int) -> AsyncGenerator[Piece, None]:
        self.num_begun += 1
        end = "cut"
        try:
            if self.raises is not None:
                raise self.raises
            for number, word in enumerate(self.words):
                if number == 1:
                    if self.pause is not None:
                        await self.pause.wait()
                    if self.raises_later is not None:
                        raise self.raises_later
                yield Piece(text=word)
            end = "whole"
            usage = Usage(prompt_tokens=10, completion_tokens=len(self.words), num_frames=num_frames)
            yield Piece(text="", finish="stop", usage=usage)
        finally:
            self.ended.append(end)


def picture(shade: int = 100, *, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(out, kind)
    return out.getvalue()


def picture_of(frame_bgr: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame_bgr[..., ::-1]).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(data: bytes | None = None, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture() if data is None else data), **fields}}


def jpegs(*frames: bytes) -> dict[str, Any]:
    """A video in the form in which vLLM accepts a list of frames."""
    parts = ",".join(base64.b64encode(frame).decode() for frame in frames)
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{parts}"}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def says(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": words}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": list(messages) or [user("What is it?")], **fields}
