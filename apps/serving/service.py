"""What the routes ask of whoever has the streams: this process, or the replicas of a cluster.

Arguments and results can be pickled. Frames and images are pictures as they were sent: JPEG, PNG or what else Pillow
reads. Every method raises PVCError: Busy where the client may come again, NoSession for an id that is not known here,
MediaError for a picture that is none, StreamError for what else it may not ask.
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
    """No session has this id: it was never opened, was closed, or was not used for long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """A turn of the conversation before the question. images: as those of Wanted."""

    question: str
    answer: str
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is asked, and how long the answer may be.

    images  before the question, or where it says <image>
    earlier what was said before, oldest first. It comes behind the frames
    stop    texts before which the answer ends
    keep    question and answer stay in the context of a session
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
    """prompt: context rows that the question's answer could see, those of frames among them; completion: tokens."""

    prompt_tokens: int
    completion_tokens: int
    num_frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an answer. The last one has `finish` and `usage`: stop, or length where max_new_tokens cut it."""

    text: str
    finish: Literal["stop", "length"] | None = None
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A session. num_frames: where it goes on from a snapshot, those that it has; lost: what is said of the others."""

    id: str
    num_frames: int = 0
    lost: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What became of a frame.

    frame_index  of this frame; the next one should have one more
    is_repeated  it had been pushed before, and was not pushed again
    is_dropped   it was left out, since newer ones came
    gap          frames that are missing before it
    lost         what is said of frames that a replica that died had; empty but once
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
        """The name under which clients ask for it."""

    def complete(self, frames: tuple[bytes, ...], wanted: Wanted) -> AsyncIterator[Piece]:
        """Answer about a clip of these frames, or about wanted.images alone; nothing of it is remembered."""

    async def open(self, session_id: str | None = None) -> Opened:
        """A stream with memory, under this id or a new one. Opening it again finds it as it is."""

    async def push(self, session_id: str, picture: bytes, frame_index: int | None = None) -> Pushed:
        """The next frame of a session. One that was pushed before, by its index, is not pushed again."""

    def ask(self, session_id: str, wanted: Wanted) -> AsyncIterator[Piece]:
        """Answer about all frames of the session so far."""

    async def close(self, session_id: str) -> None:
        """Forget it."""
