"""A stream's sequence of episodes: when time restarts, and with which frames.

Note: a re-anchored stream is bit-identical to a fresh stream that was pushed the last frames, because it is one.
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
    """Start of a stream's time. Replaced as a whole, so that an interrupt finds either the old or the new one.

    episode      everything remembered since then
    first_frame  the frame with time 0, counted over all pushed frames
    index        counts anchors; 0 is the start of the stream
    """

    episode: Episode
    first_frame: int = 0
    index: int = 0


class Episodes:
    """The current episode and, with clock 'reanchor', the material for the next one.

    retained  trunk features of the last frames
    notes     text before the first frame of each later episode
    reserve   context rows that frames leave free
    num_left_out  frames that were not replayed, because they or a later frame overflowed at the new time
    """

    def __init__(
        self, bundle: Bundle, *, clock: Clock, retain: int, reserve: int, least: int | None, time_divisor: int,
        ingest: Ingest, max_waiting: int,
    ) -> None:  # fmt: skip
        """retain  frames that a re-anchor replays or, down to `least`, as many as fit; 0 if time runs on
        Raises StreamError if fewer fit, or if reserve is invalid."""
        manifest, temporal = bundle.manifest, bundle.sessions["temporal"]
        make = partial(Episode, time_divisor=time_divisor, ingest=ingest, max_waiting=max_waiting)
        self._clock, self._trained, self._context = clock, manifest.trained_frames, manifest.limits.context
        self.anchor = Anchor(episode=make(bundle))
        self.notes, self.num_retained = "", retain
        self.num_retained = self.fitting(reserve, self.notes, least=least or 1)
        self.reserve, self.num_left_out = reserve, 0
        self._replayable = 0  # earliest frame that may be replayed
        # One more than is replayed, so that a failing frame does not evict any of them.
        num_kept = self.num_retained + 1 if self.num_retained else 0
        self.retained = FeatureCache(temporal.spec, num_kept, temporal.memory)
        self._successor = Successor(make(bundle.of_successors), self.retained) if num_kept else None
        self._keeps_its_place = bundle.of_successors is not bundle

    @property
    def current(self) -> Episode:
        return self.anchor.episode

    @property
    def all(self) -> tuple[Episode, ...]:
        """The current episode and the prepared one."""
        return (self.current,) if self._successor is None else (self.current, self._successor.episode)

    @property
    def num_frames(self) -> int:
        """Frames over all episodes."""
        return self.anchor.first_frame + self.current.num_frames

    def push(self, trunk_features: Tensor) -> float:
        """Push the next frame, from its trunk features (1, N, C). Returns time.perf_counter() between vision and LLM.

        After any exception, the frame is not part of the stream.
        """
        if self.frames_left(1) == 0:
            return self._start_anew(trunk_features)
        encoded = self.current.vision.encode_features(trunk_features)
        seen = time.perf_counter()
        self.retained.push(trunk_features, self.num_frames)
        self.current.take(encoded)
        return seen

    def prepare(self) -> None:
        """Prepare the next episode, as far as its frames are there."""
        successor, num_frames = self._successor, self.num_frames
        if successor is None or successor.is_in_use:
            return
        left = self.frames_left(self.num_retained)
        if left == self.num_retained:
            return
        first = max(num_frames + left - self.num_retained, self._replayable)
        # The current frame is already part of the stream. A failure here recurs at the re-anchor and is reported there.
        with suppress(Exception):
            successor.prepare(first, num_frames, notes=self.notes)

    def frames_left(self, most: int) -> int:
        """Frames until the stream re-anchors, at most `most`: until it has as many as the model was trained on, or the
        next one does not fit. `most` if it never does."""
        if self._clock != "reanchor":
            return most
        num_frames = self.current.num_frames
        untrained = max(self._trained - num_frames, 0)
        return self.current.context.frames_that_fit(
            min(most, untrained), first_index=num_frames + 1, num_reserved=self.reserve
        )

    @property
    def next_cuts_an_answer(self) -> bool:
        """Whether the next frame re-anchors and replaces an episode whose question is still being answered."""
        return self._successor is not None and self._successor.is_in_use and self.frames_left(1) == 0

    def fitting(self, reserve: int, notes: str, *, least: int) -> int:
        """Number of frames that a re-anchor can replay, if the notes, one more frame and `reserve` rows must also fit.

        Raises StreamError if that is fewer than `least`, or if reserve is invalid.
        """
        if reserve < 0 or (reserve and self._clock != "reanchor"):
            raise StreamError(
                f"reserve is {reserve}, and the clock is '{self._clock}'",
                expected="at least 0; exactly 0 if time runs on, because frames then use all rows",
                fix="pass clock='reanchor', or leave reserve out",
            )
        if self._clock != "reanchor":
            return 0
        context = self.current.context
        fits = context.frames_that_fit_anew(self.num_retained + 1, notes=notes, num_reserved=reserve)
        if fits < least + 1:
            raise StreamError(
                f"only {fits} frames fit in a context of {self._context} with {reserve} reserved rows"
                f"{' and the notes' if notes else ''}",
                expected=f"{least + 1} or more: those that a re-anchor replays, and a new one",
                fix="retain fewer frames, use shorter questions and notes, or export with a larger --context",
            )
        return fits - 1

    def rows_needed(self, num_frames: int, *, question: str, max_new_tokens: int) -> int:
        """Most context rows that one episode needs for num_frames frames, a question and its answer."""
        context = self.current.context
        if self._clock == "reanchor":
            most = min(num_frames, self._trained)
            fits = context.frames_that_fit_anew(most, notes=self.notes, num_reserved=self.reserve)
            num_frames = min(most, max(fits, self.num_retained + 1))
        return max_new_tokens + context.rows_anew(num_frames, question=question, notes=self.notes)

    def reset(self) -> None:
        """Drop everything except the notes. An interrupt waits until this is complete."""

        def forget() -> None:
            self.current.reset(self.notes)
            self.retained.reset()
            if self._successor is not None:
                self._successor.forget()
            self._replayable = 0
            self.anchor = Anchor(episode=self.current)

        _run_whole(forget)

    def copy_from(self, other: Episodes) -> None:
        """Copy another stream's caches, on the device they are on. This stream is new."""
        self.current.copy_from(other.current)
        self.retained.copy_from(other.retained)

    def _start_anew(self, trunk_features: Tensor) -> float:
        """Re-anchor with this frame. Returns time.perf_counter() from just before the frame itself.

        Everything that can fail comes first; an interrupt waits until the rest is done.
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
                old.episode.become(successor.episode)  # the successor keeps its content until the next preparation
                self.anchor = replace(new, episode=old.episode)
            else:
                successor.take_back(old.episode)
                self.anchor = new

        _run_whole(adopt)
        return prepared

    def _replay(self, successor: Successor) -> int:
        """Push the last frames that are not pushed yet. Returns the first frame.

        A frame that overflows twice is left out with all before it: otherwise no frame could ever be pushed again.
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
    """Run a step that must not stay half done and may run twice: after an interrupt it runs again, to its end."""
    try:
        step()
    except BaseException:
        step()
        raise
