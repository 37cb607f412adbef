"""A stream owned by this process: its snapshot's state, and the losses still to report to its client."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from engines.answer import PushTiming
from engines.many.handle import StreamHandle
from engines.stream import PVCStream

from .handover import Standing, saved_bytes


@dataclass(eq=False, kw_only=True, slots=True)
class Held:
    """A stream owned by this process.

    standing    its snapshot's state
    next_index  index of the next frame; done_index: one past the last frame in its stream
    lost_from   frames from this index on may be lost, which is not reported yet; None if not
    anew        reason for a restart that is not reported yet
    told        index of the last frame whose sender was told of a loss, and the text
    num_since   frames since the last snapshot; num_anchors: the stream's anchors at that snapshot
    is_lost     another process has taken it over
    """

    handle: StreamHandle
    standing: Standing
    next_index: int = 0
    done_index: int = 0
    lost_from: int | None = None
    anew: str = ""
    told: tuple[int, str] = (-1, "")
    num_since: int = 0
    num_anchors: int = 0
    is_saving: bool = False
    is_lost: bool = False
    used_at: float = field(default_factory=time.monotonic)
    in_flight: dict[int, Future[PushTiming | None]] = field(default_factory=dict)
    _is_leaving: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin_saving(self) -> bool:
        """Mark it as being saved. False if it is being saved already, or may not be saved any more."""
        with self._lock:
            if self.is_saving or self._is_leaving or self.is_lost:
                return False
            self.is_saving = True
            return True

    def leave(self) -> None:
        """Reserve the last save for the caller. Returns once no other save is running."""
        self._is_leaving = True
        while True:
            with self._lock:
                if not self.is_saving:
                    return
            time.sleep(0.005)

    def to_save(self, stream: PVCStream) -> tuple[Standing, bytes]:
        """Its state, and the bytes of PVCStream.save. Runs on the scheduler's thread, through StreamHandle.call."""
        self.num_since, self.num_anchors = 0, stream.num_anchors
        standing = replace(
            self.standing, next_index=self.done_index, num_frames=stream.num_frames,
            is_untold=self.lost_from is not None, anew=self.anew, told_index=self.told[0], told=self.told[1],
        )  # fmt: skip
        return standing, saved_bytes(stream.save)

    def lost_before(self, index: int, *, is_sure: bool) -> str:
        """The message about lost frames for the sender of this frame, or ''. Only that sender gets it, each time it
        sends the frame. is_sure: the client gave the index."""
        if index == self.told[0]:
            return self.told[1]
        if index < self.next_index:
            return ""
        text = self._lost_before(index, is_sure=is_sure)
        self.lost_from, self.anew = None, ""
        if text:
            self.told = index, text
        return text

    def _lost_before(self, index: int, *, is_sure: bool) -> str:
        lost_from = self.lost_from
        if self.anew:
            return self.anew
        if lost_from is None or (is_sure and index == lost_from):
            return ""
        if not is_sure:
            return f"frames pushed after the snapshot at frame {lost_from} were lost with their replica"
        if index == lost_from + 1:
            return f"frame {lost_from} was lost with its replica"
        return f"frames {lost_from} to {index - 1} were lost with their replica"
