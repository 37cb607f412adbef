"""The episode that takes over when a stream re-anchors: a fresh one, pushed the last frames ahead, so that no frame
waits for all of them.

It is a saving and no state: whatever changes, it is forgotten, and made again from the retained frames.
"""

from __future__ import annotations

from .cache import FeatureCache
from .episode import Episode
from .errors import NonFiniteError

STEPS = 2
"""Frames that it is pushed, at most, with each one that the stream is pushed."""


class Successor:
    """Frames are counted as the stream counts them, from 0 and without an end."""

    def __init__(self, episode: Episode, retained: FeatureCache) -> None:
        """`episode` is another one than the stream's own. `retained` holds the frames that may be pushed to it."""
        self._retained = retained
        self.overflowed: int | None = None  # the frame that the last NonFiniteError was about
        self.take_back(episode)

    def take_back(self, episode: Episode) -> None:
        """Prepare another episode from now on, which may still be in use: until then it is left as it is."""
        self.episode = episode
        self._prepared: tuple[int, str] | None = None  # its first frame and its notes

    @property
    def end(self) -> int:
        """The frame after its last one; 0 where nothing is prepared."""
        return self._prepared[0] + self.episode.num_frames if self._prepared else 0

    @property
    def is_in_use(self) -> bool:
        """Whether an answer is about what it holds."""
        return self.episode.context.branch is not None

    def prepare(self, first_frame: int, end: int, *, notes: str, steps: int = STEPS) -> None:
        """Come nearer to an episode of the frames from first_frame on, up to `end`. What is prepared of another one is
        forgotten, and so is a frame that was pushed and did not become part of the stream."""
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
        """What is prepared; the episode stands where one with these notes begins. May be run twice."""
        self._prepared = None
        self.episode.reset(notes)
