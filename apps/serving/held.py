"""A stream that this process has, and what it owes to whoever uses it and to whoever inherits it."""

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
    """A stream that this process has.

    standing    its snapshot's
    next_index  of the frame that comes next; done_index: behind the last frame that its stream has
    lost_from   frames from this index on may be lost, which nobody was told yet; None if not
    anew        why it began anew, which nobody was told yet
    told        index of the last frame whose sender was told of a loss, and what
    num_since   frames since the last snapshot, num_anchors of that
    is_lost     another process has taken it up
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
        """False where it is being saved already, or for the last time."""
        with self._lock:
            if self.is_saving or self._is_leaving or self.is_lost:
                return False
            self.is_saving = True
            return True

    def leave(self) -> None:
        """It is saved once more, by the caller. Returns when nobody else does."""
        self._is_leaving = True
        while True:
            with self._lock:
                if not self.is_saving:
                    return
            time.sleep(0.005)

    def to_save(self, stream: PVCStream) -> tuple[Standing, bytes]:
        """Where it stands, and what PVCStream.save writes. On the scheduler's thread, by StreamHandle.call."""
        self.num_since, self.num_anchors = 0, stream.num_anchors
        standing = replace(
            self.standing, next_index=self.done_index, num_frames=stream.num_frames,
            is_untold=self.lost_from is not None, anew=self.anew, told_index=self.told[0], told=self.told[1],
        )  # fmt: skip
        return standing, saved_bytes(stream.save)

    def lost_before(self, index: int, *, is_sure: bool) -> str:
        """What is said of frames that were lost, as a frame is taken. Its sender alone is told, as often as it sends
        it. is_sure: the index is the sender's own."""
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
            return f"what was pushed after the snapshot at frame {lost_from} was lost with the replica that had it"
        if index == lost_from + 1:
            return f"frame {lost_from} was lost with the replica that had it"
        return f"frames {lost_from} to {index - 1} were lost with the replica that had them"
