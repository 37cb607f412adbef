"""The interface between the HTTP routes and the streams, which are in this process or on a cluster's replicas.

Arguments and results can be pickled. Frames and images are pictures as sent by the client: JPEG, PNG or another format
Pillow reads. Every method raises PVCError: Busy if the client may retry, NoSession for an unknown id, MediaError for an
invalid picture, StreamError for other invalid requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from engines.errors import StreamError
from engines.sampling import Sampling

__all__ = [
    "NoSession", "Opened", "Piece", "Pushed", "Said", "Sampling", "Service", "Usage", "Wanted"
]  # fmt: skip


class NoSession(StreamError):
    """No session has this id: it was never opened, was closed, or was unused for too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """A turn of the conversation before the question. images: as in Wanted."""

    question: str
    answer: str
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A question and the options of its answer.

    images  placed before the question, or at <image> in its text
    earlier earlier turns, oldest first; they come after the frames
    stop    texts before which the answer ends
    keep    keep question and answer in the session's context
    """

    question: str
    images: tuple[bytes, ...] = ()
    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    keep: bool = False
    earlier: tuple[Said, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Token counts. prompt_tokens: context rows the answer could see, with frames; completion_tokens: its tokens."""

    prompt_tokens: int
    completion_tokens: int
    num_frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an answer. The last one has `finish` ("length" if max_new_tokens cut it) and `usage`."""

    text: str
    finish: Literal["stop", "length"] | None = None
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A session. num_frames: frames it has; lost: message about frames lost after its snapshot, or empty."""

    id: str
    num_frames: int = 0
    lost: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """The result of a push.

    frame_index  index of this frame; the next one should be one higher
    is_repeated  it had been pushed before and was not pushed again
    is_dropped   it was dropped for newer frames
    gap          number of frames missing before it
    lost         message about frames lost with a dead replica, given once; otherwise empty
    """

    frame_index: int
    is_repeated: bool = False
    is_dropped: bool = False
    gap: int = 0
    num_frames: int = 0
    vision_ms: float = 0.0
    ingest_ms: float = 0.0
    lost: str = ""


class Service(Protocol):
    """One bundle's streams."""

    @property
    def model_id(self) -> str:
        """The model's name in clients' requests."""

    def complete(self, frames: tuple[bytes, ...], wanted: Wanted) -> AsyncIterator[Piece]:
        """Answer about a clip of these frames, or about wanted.images only; nothing is remembered."""

    async def open(self, session_id: str | None = None) -> Opened:
        """Open a stream with memory under this id or a new one. Opening it again returns it unchanged."""

    async def push(self, session_id: str, picture: bytes, frame_index: int | None = None) -> Pushed:
        """Push a session's next frame. A frame whose index was pushed before is not pushed again."""

    def ask(self, session_id: str, wanted: Wanted) -> AsyncIterator[Piece]:
        """Answer about all frames of the session so far."""

    async def close(self, session_id: str) -> None:
        """Close the session and delete its memory."""
