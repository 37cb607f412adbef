"""The episode that takes over when a stream re-anchors: a fresh one, pushed the last frames ahead of time, so that no
frame waits for all of them.

It only saves time and holds no state of its own: after any change it is dropped and rebuilt from the retained frames.
"""

from __future__ import annotations

from .cache import FeatureCache
from .episode import Episode
from .errors import NonFiniteError

STEPS = 2
"""Most frames pushed to it with each frame pushed to the stream."""


class Successor:
    """The prepared episode. Frames are counted as in the stream, from 0 without an end."""

    def __init__(self, episode: Episode, retained: FeatureCache) -> None:
        """`episode` is not the stream's current one. `retained` has the frames that may be pushed to it."""
        self._retained = retained
        self.overflowed: int | None = None  # the frame that caused the last NonFiniteError
        self.take_back(episode)

    def take_back(self, episode: Episode) -> None:
        """From now on prepare another episode. It may still be in use; until then it is left unchanged."""
        self.episode = episode
        self._prepared: tuple[int, str] | None = None  # its first frame and its notes

    @property
    def end(self) -> int:
        """The frame after its last one; 0 if nothing is prepared."""
        return self._prepared[0] + self.episode.num_frames if self._prepared else 0

    @property
    def is_in_use(self) -> bool:
        """Whether an answer still uses its content."""
        return self.episode.context.branch is not None

    def prepare(self, first_frame: int, end: int, *, notes: str, steps: int = STEPS) -> None:
        """Push up to `steps` more frames, towards an episode of the frames from first_frame to `end`. Drops what was
        prepared for another one, and a pushed frame that did not become part of the stream."""
        if self._prepared != (first_frame, notes) or self.end > end:
            self.forget(notes)
            self._prepared = first_frame, notes
        for frame in range(self.end, min(end, self.end + steps)):
            try:
                self.episode.push(self._retained.of(frame))
            except NonFiniteError:
                self.overflowed = frame
                raise

    def forget(self, notes: str = "") -> None:
        """Drop what is prepared; the episode restarts with these notes. May be run twice."""
        self._prepared = None
        self.episode.reset(notes)
