"""A stream from its time 0 on: the frames it remembers, and the conversation about them.

A stream that re-anchors is a sequence of episodes (successor.py).
"""

from __future__ import annotations

from .bundle import Bundle
from .context import Context
from .ingest import CATCH_UP, Ingest
from .memory import Array, Tensor
from .vision import EncodedFrame, VisionEncoder


class Episode:
    """One episode, with its own ring and LLM cache; sessions are shared through the bundle.

    vision    the frames it remembers
    context   the conversation about them
    newest    (M, E) of the last pushed frame; None before the first
    """

    def __init__(self, bundle: Bundle, *, time_divisor: int = 1, ingest: Ingest, max_waiting: int) -> None:
        caches = bundle.open_caches("temporal")
        self.vision = VisionEncoder(bundle.sessions, time_divisor=time_divisor, caches=caches)
        self.context = Context(bundle)
        self.newest: Array | None = None
        self._is_lazy, self._max_waiting = ingest == "lazy", max_waiting

    @property
    def num_frames(self) -> int:
        """The next frame's time."""
        return self.vision.ring.num_frames

    def push(self, trunk_features: Tensor) -> None:
        """Push the next frame, from its trunk features (1, N, C). After any exception it is not part of the episode."""
        self.take(self.vision.encode_features(trunk_features))

    def take(self, encoded: EncodedFrame) -> None:
        """Add a frame to the conversation, then to the ring; the ring's count makes it part of the episode."""
        context, num_frames = self.context, self.num_frames
        frame = context.frame(encoded.frame_embeds, index=num_frames + 1)
        self._take_in_some()
        with context.undone_on_error(unless=lambda: self.num_frames > num_frames):
            context.add(frame, wait=self._is_lazy or context.branch is not None or bool(context.waiting))
            self.vision.commit(encoded)
        self.newest = encoded.frame_embeds

    def take_in_all(self) -> None:
        """Prepare for a question. A lazy episode's frames keep waiting, to share its pass. An eager episode's frames
        are read one by one, as when they were new, so that the LLM's rows are bit-identical."""
        while not self._is_lazy and self.context.waiting:
            self.context.take_in(1)

    def reset(self, notes: str = "") -> None:
        """Restart, with notes before the first frame. May be run twice."""
        self.vision.reset()
        self.newest = None
        self.context.restart(notes)

    def become(self, other: Episode) -> None:
        """Take over another episode's state; that episode has no question being answered. May be run twice."""
        self.reset()
        self.copy_from(other)
        self.newest = other.newest
        self.context.waiting, self.context.pending = other.context.waiting, other.context.pending

    def copy_from(self, other: Episode) -> None:
        """Copy another episode's caches, on the device they are on. This episode is new."""
        self.vision.ring.copy_from(other.vision.ring)
        self.context.language.cache.copy_from(other.context.language.cache)

    def _take_in_some(self) -> None:
        """Read waiting frames, unless a question is being answered: lazily as many as share a pass; eagerly a few of
        those that waited during an answer, so that no frame is delayed by all of them."""
        context = self.context
        if context.branch is not None:
            return
        if self._is_lazy:
            while len(context.waiting) >= self._max_waiting:
                context.take_in(self._max_waiting)
            return
        for _ in range(min(CATCH_UP, len(context.waiting))):
            context.take_in(1)
