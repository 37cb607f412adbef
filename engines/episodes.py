"""One episode of a stream after another: where time starts anew, with which frames, and when.

Note: what a re-anchor makes is, to the last bit, a fresh stream that was pushed the last frames: it is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from .bundle import Bundle
from .cache import FeatureCache
from .clock import Clock
from .episode import Episode
from .errors import NonFiniteError, StreamError
from .ingest import Ingest
from .memory import Tensor
from .successor import Successor


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """Where a stream's time starts. Replaced as a whole, so that an interrupt finds the old one or the new one.

    episode      what is remembered since then
    first_frame  the frame that has time 0, of all that were pushed
    index        counts anchors; the first one is where the stream began
    """

    episode: Episode
    first_frame: int = 0
    index: int = 0


class Episodes:
    """The current one, and where the clock is 'reanchor' what the next one is made from.

    retained  trunk features of the last frames
    notes     text before the first frame of each episode that begins from now on
    reserve   context rows that frames leave free
    num_left_out  frames that should have been replayed, and overflowed at their new time
    """

    def __init__(
        self, bundle: Bundle, *, clock: Clock, retain: int, reserve: int, least: int | None, time_divisor: int,
        ingest: Ingest, max_waiting: int,
    ) -> None:  # fmt: skip
        """retain  frames that a re-anchor replays, or, down to `least`, as many as fit; 0 where time runs on
        Raises StreamError if fewer fit, and for a reserve that cannot be."""
        manifest, temporal = bundle.manifest, bundle.sessions["temporal"]
        make = partial(Episode, time_divisor=time_divisor, ingest=ingest, max_waiting=max_waiting)
        self._clock, self._trained, self._context = clock, manifest.trained_frames, manifest.limits.context
        self.anchor = Anchor(episode=make(bundle))
        self.notes, self.num_retained = "", retain
        self.num_retained = self.fitting(reserve, self.notes, least=least or 1)
        self.reserve, self.num_left_out = reserve, 0
        self._replayable = 0  # the first frame that may be replayed
        # One more than are replayed, so that a frame that fails costs none of them.
        num_kept = self.num_retained + 1 if self.num_retained else 0
        self.retained = FeatureCache(temporal.spec, num_kept, temporal.memory)
        self._successor = Successor(make(bundle.of_successors), self.retained) if num_kept else None
        self._keeps_its_place = bundle.of_successors is not bundle

    @property
    def current(self) -> Episode:
        return self.anchor.episode

    @property
    def all(self) -> tuple[Episode, ...]:
        """The current one, and the one that is prepared."""
        return (self.current,) if self._successor is None else (self.current, self._successor.episode)

    @property
    def num_frames(self) -> int:
        """Of all episodes."""
        return self.anchor.first_frame + self.current.num_frames

    def push(self, trunk_features: Tensor) -> float:
        """The next frame, from its trunk features (1, N, C). Returns time.perf_counter() between vision and LLM.

        Whatever is raised, the frame is not part of the stream.
        """
        if self.frames_left(1) == 0:
            return self._start_anew(trunk_features)
        encoded = self.current.vision.encode_features(trunk_features)
        seen = time.perf_counter()
        self.retained.push(trunk_features, self.num_frames)
        self.current.take(encoded)
        return seen

    def prepare(self) -> None:
        """Get the next episode ready, as far as the frames are there that it begins with."""
        successor, num_frames = self._successor, self.num_frames
        if successor is None or successor.is_in_use:
            return
        left = self.frames_left(self.num_retained)
        if left == self.num_retained:
            return
        first = max(num_frames + left - self.num_retained, self._replayable)
        # Every frame so far is taken in. What fails here fails again where the stream starts anew, and is said there.
        with suppress(Exception):
            successor.prepare(first, num_frames, notes=self.notes)

    def frames_left(self, most: int) -> int:
        """Frames until the stream starts anew, at most `most`: until it holds as many as the model was trained on, or
        the next one has no room. `most` where it never does."""
        if self._clock != "reanchor":
            return most
        num_frames = self.current.num_frames
        untrained = max(self._trained - num_frames, 0)
        return self.current.context.frames_that_fit(
            min(most, untrained), first_index=num_frames + 1, num_reserved=self.reserve
        )

    @property
    def next_cuts_an_answer(self) -> bool:
        """Whether the next frame starts the stream anew in place of an episode that somebody is answered about."""
        return self._successor is not None and self._successor.is_in_use and self.frames_left(1) == 0

    def fitting(self, reserve: int, notes: str, *, least: int) -> int:
        """Frames that a re-anchor can replay, where the notes, one more frame and `reserve` rows must fit beside them.

        Raises StreamError if that is fewer than `least`, and for a reserve that cannot be.
        """
        if reserve < 0 or (reserve and self._clock != "reanchor"):
            raise StreamError(
                f"reserve is {reserve}, and the clock is '{self._clock}'",
                expected="at least 0, and 0 where time runs on: there frames take all the rows that there are",
                fix="give clock='reanchor' with it, or leave reserve out",
            )
        if self._clock != "reanchor":
            return 0
        context = self.current.context
        fits = context.frames_that_fit_anew(self.num_retained + 1, notes=notes, num_reserved=reserve)
        if fits < least + 1:
            raise StreamError(
                f"with {reserve} rows in reserve{' and the notes' if notes else ''}, {fits} frames fit in a context of "
                f"{self._context}",
                expected=f"{least + 1} or more: those that a re-anchor replays, and a new one",
                fix="retain fewer, ask and remember shorter, or export with a larger --context",
            )
        return fits - 1

    def rows_needed(self, num_frames: int, *, question: str, max_new_tokens: int) -> int:
        """Most context rows of so many frames, of one episode, a question, and its answer."""
        context = self.current.context
        if self._clock == "reanchor":
            most = min(num_frames, self._trained)
            fits = context.frames_that_fit_anew(most, notes=self.notes, num_reserved=self.reserve)
            num_frames = min(most, max(fits, self.num_retained + 1))
        return max_new_tokens + context.rows_anew(num_frames, question=question, notes=self.notes)

    def reset(self) -> None:
        """Forget everything but the notes. An interrupt waits until all of it is forgotten."""

        def forget() -> None:
            self.current.reset(self.notes)
            self.retained.reset()
            if self._successor is not None:
                self._successor.forget()
            self._replayable = 0
            self.anchor = Anchor(episode=self.current)

        _run_whole(forget)

    def copy_from(self, other: Episodes) -> None:
        """Take over another stream's caches, copied where they live. This one is fresh."""
        self.current.copy_from(other.current)
        self.retained.copy_from(other.retained)

    def _start_anew(self, trunk_features: Tensor) -> float:
        """Re-anchor with this frame. Returns time.perf_counter() before the frame itself.

        What can fail comes first; an interrupt of the rest waits until it is done.
        """
        successor, old, num_frames = self._successor, self.anchor, self.num_frames
        assert successor is not None
        first = self._replay(successor)
        prepared = time.perf_counter()
        successor.episode.push(trunk_features)
        new = Anchor(episode=successor.episode, first_frame=first, index=old.index + 1)

        def adopt() -> None:
            self.retained.push(trunk_features, num_frames)
            if self._keeps_its_place and old.episode.context.branch is None:
                old.episode.become(successor.episode)  # what was prepared is left there until the next one is
                self.anchor = replace(new, episode=old.episode)
            else:
                successor.take_back(old.episode)
                self.anchor = new

        _run_whole(adopt)
        return prepared

    def _replay(self, successor: Successor) -> int:
        """Push the last frames, as far as that was not done ahead. Returns the first of them.

        One that overflows twice is left out, and what came before it: else no frame could come any more.
        """
        num_frames, overflowed = self.num_frames, -1
        while True:
            first = max(num_frames - self.num_retained, self._replayable)
            try:
                successor.prepare(first, num_frames, notes=self.notes, steps=self.num_retained)
                return first
            except NonFiniteError:
                assert successor.overflowed is not None
                if successor.overflowed == overflowed:
                    self.num_left_out += overflowed + 1 - first
                    self._replayable = overflowed + 1
                overflowed = successor.overflowed


def _run_whole(step: Callable[[], None]) -> None:
    """Run what must not be left half done, and may be run twice: after an interrupt it runs again, to its end."""
    try:
        step()
    except BaseException:
        step()
        raise
