"""Where a stream stands, apart from what its caches hold: what a saved stream is opened with, and a fork begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from .clock import Clock
from .ingest import Ingest, WaitingFrame

if TYPE_CHECKING:
    from .stream import PVCStream


class StreamOptions(TypedDict):
    """What PVCStream is made with, besides its bundle."""

    total_frames: int | None
    ingest: Ingest
    max_waiting: int
    clock: Clock | None
    retain: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything of a stream but its caches' rows and their counts.

    first_frame, num_anchors  of its anchor (vision.Anchor)
    pending                   text that waits for the next special token
    waiting                   frames that the LLM has not taken in; nobody writes into their rows, so streams share them
    """

    options: StreamOptions
    first_frame: int
    num_anchors: int
    pending: str
    waiting: tuple[WaitingFrame, ...]

    @staticmethod
    def of(stream: PVCStream) -> Snapshot:
        anchor = stream.vision.anchor
        return Snapshot(
            options=StreamOptions(
                total_frames=stream._total_frames,
                ingest=stream._ingest,
                max_waiting=stream._max_waiting,
                clock=stream.clock,
                retain=stream._num_retained or None,
            ),
            first_frame=anchor.first_frame,
            num_anchors=anchor.index,
            pending=stream._pending,
            waiting=tuple(stream._waiting),
        )

    def put_into(self, stream: PVCStream) -> None:
        """Let a new stream, made with these options, stand here. Its caches are filled by whoever has their rows."""
        stream.vision.anchor = replace(stream.vision.anchor, first_frame=self.first_frame, index=self.num_anchors)
        stream._waiting[:], stream._pending = self.waiting, self.pending

    def to_json(self) -> dict[str, Any]:
        """But for the waiting frames' rows, which are saved as the caches are."""
        return {
            **self.options,
            "first_frame": self.first_frame,
            "num_anchors": self.num_anchors,
            "pending": self.pending,
            "waiting": [[frame.pending, frame.index] for frame in self.waiting],
        }
