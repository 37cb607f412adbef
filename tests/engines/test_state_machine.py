"""Random operations on streams (stories.py), on a whole-number model (exact.py): every bit as a plain list requires.

The same stories must find each planted fault, and as a difference, not as a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import PVCStream
from engines.bundle import Bundle
from engines.cache import FeatureCache, LinearCache, RingCache
from engines.context import Context
from engines.episode import Episode
from engines.fake import RecordingCuda
from engines.many.passes import Passes
from engines.many.slab import Slot
from engines.memory import DeviceMemory, HostMemory
from engines.saved import Snapshot
from engines.successor import Successor

from .exact import LIMITS, SHAPE, exact_bundle
from .stories import run_stories, slot_off_by_one
from .story_oracles import NUM_FRAMES, Differs, Fresh, Uncached

TRAINED = 4
INGESTS = [{"ingest": "eager"}, {"ingest": "lazy", "max_waiting": 2}, {"ingest": "lazy", "max_waiting": 16}]
KINDS: dict[str, dict[str, Any]] = {
    "rows": {"cache_update": "rows", "spelling": "concat"},
    "in place": {"cache_update": "aliased", "spelling": "split"},
}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_saved.py tests power cuts."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def run(bundle: Bundle, *, alone: Bundle | None = None, max_examples: int = 25, num_steps: int = 40) -> None:
    """alone: the bundle of the oracles, if it is another one."""
    size = SHAPE.image_size
    frames = list(np.random.default_rng(0).integers(0, 256, (NUM_FRAMES + 1, size, size, 3), dtype=np.uint8))
    oracles = [Uncached(alone or bundle, frames), Fresh(alone or bundle, frames)]
    run_stories(bundle, frames, oracles, ingests=INGESTS, max_examples=max_examples, num_steps=num_steps)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stream_is_its_story(kind: str, tmp_path: Path) -> None:
    run(exact_bundle(tmp_path, trained_frames=TRAINED, **KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_stream_on_a_gpu_is_its_story(kind: str, tmp_path: Path) -> None:
    memory = DeviceMemory(RecordingCuda())
    run(exact_bundle(tmp_path, trained_frames=TRAINED, memory=memory, **KINDS[kind]), max_examples=5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stream_that_shares_its_passes_is_its_story(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame and each question shares a pass with another stream, whose caches are next to this one's."""
    limits = replace(LIMITS, streams=2)
    alone = exact_bundle(tmp_path, trained_frames=TRAINED, limits=limits, **KINDS[kind])
    passes = Passes(alone, max_streams=400)  # streams of earlier stories are freed when the garbage collector runs
    run_together(passes, monkeypatch)
    run(passes.bundle, alone=alone)


def run_together(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PVCStream(passes.bundle, clock="reanchor", retain=2)
    frame = np.full((SHAPE.image_size,) * 2 + (3,), 7, np.uint8)
    methods: dict[str, Callable[..., Any]] = {name: getattr(PVCStream, name) for name in ("push", "ask")}

    def sharing(name: str) -> Callable[..., Any]:
        def method(self: PVCStream, *args: Any, **options: Any) -> Any:
            found: list[Any] = []

            def own() -> None:
                try:
                    found.append(methods[name](self, *args, **options))
                except BaseException as error:
                    found.append(error)

            if isinstance(self.vision.ring._caches, Slot):
                passes.run([own, lambda: methods["push"](other, frame)])
            else:  # an oracle's stream
                own()
            if isinstance(found[0], BaseException):
                raise found[0]
            return found[0]

        return method

    for name in methods:
        monkeypatch.setattr(PVCStream, name, sharing(name))


def reset_forgets_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(self: RingCache) -> None:
        for state in self._states:
            self._memory.clear(self._rings[state.input], state, 0, self.window)

    monkeypatch.setattr(RingCache, "reset", reset)


def reset_clears_no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RingCache, "reset", lambda self: setattr(self, "num_frames", 0))


def reset_leaves_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    restart = Context.restart

    def forget(self: Context, notes: str = "") -> None:
        left = self.waiting
        restart(self, notes)
        self.waiting = left

    monkeypatch.setattr(Context, "restart", forget)


def fork_shares_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = RingCache.copy_from

    def shared(self: RingCache, other: RingCache) -> None:
        copy(self, other)
        self._rings["past.1.value"] = other._rings["past.1.value"]

    monkeypatch.setattr(RingCache, "copy_from", shared)


def fork_shares_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = LinearCache.copy_from

    def shared(self: LinearCache, other: LinearCache) -> None:
        copy(self, other)
        self._caches["past.0.key"] = other._caches["past.0.key"]

    monkeypatch.setattr(LinearCache, "copy_from", shared)


def fork_shares_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = PVCStream.fork

    def shared(self: PVCStream) -> PVCStream:
        other = fork(self)
        other.episodes.current.context = self.context
        return other

    monkeypatch.setattr(PVCStream, "fork", shared)


def fork_copies_one_row_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = HostMemory.copy

    def short(self: HostMemory, target: Any, source: Any, state: Any, count: int) -> None:
        copy(self, target, source, state, max(count - 1, 0))

    monkeypatch.setattr(HostMemory, "copy", short)


def fork_forgets_its_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_at = PVCStream._stand_at

    def stand(self: PVCStream, snapshot: Snapshot) -> None:
        anchor = self.episodes.anchor
        stand_at(self, snapshot)
        self.episodes.anchor = anchor

    monkeypatch.setattr(PVCStream, "_stand_at", stand)


def rollback_one_row_short(monkeypatch: pytest.MonkeyPatch) -> None:
    truncate = LinearCache.truncate

    def short(self: LinearCache, length: int) -> None:
        truncate(self, min(length + 1, self.length) if length else 0)

    monkeypatch.setattr(LinearCache, "truncate", short)


def rollback_clears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearCache, "truncate", lambda self, length: setattr(self, "length", length))


def slot_of_an_absolute_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct until a new episode starts: then the slot still counts from the very first frame."""
    restart, push = RingCache.reset, RingCache.push

    def reset(self: RingCache) -> None:
        self.offset = getattr(self, "offset", 0) + self.num_frames  # type: ignore[attr-defined]
        restart(self)

    def late(self: RingCache, rows: Any) -> None:
        offset, count = getattr(self, "offset", 0), self.num_frames
        self.num_frames += offset
        push(self, rows)
        self.num_frames = count + 1

    monkeypatch.setattr(RingCache, "reset", reset)
    monkeypatch.setattr(RingCache, "push", late)


def kept_question_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = PVCStream.ask
    monkeypatch.setattr(
        PVCStream, "ask", lambda self, *args, **options: ask(self, *args, **(options | {"keep": False}))
    )


def question_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = PVCStream.ask
    monkeypatch.setattr(PVCStream, "ask", lambda self, *args, **options: ask(self, *args, **(options | {"keep": True})))


def failed_frame_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LLM keeps the parts of a frame that came before the failing part."""
    truncate, take = LinearCache.truncate, Episode.take

    def taken(self: Episode, *args: Any) -> None:
        cache = self.context.language.cache
        cache.truncate = lambda length: None  # type: ignore[method-assign]
        try:
            take(self, *args)
        finally:
            cache.truncate = truncate.__get__(cache)  # type: ignore[method-assign]

    monkeypatch.setattr(Episode, "take", taken)


def replay_of_the_frame_before(monkeypatch: pytest.MonkeyPatch) -> None:
    of = FeatureCache.of
    monkeypatch.setattr(FeatureCache, "of", lambda self, frame_index: of(self, frame_index - 1))


def prepared_frames_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the notes, or the frames to replay, have changed since."""
    prepare = Successor.prepare

    def careless(self: Successor, first_frame: int, end: int, **options: Any) -> None:
        if self._prepared is not None:
            first_frame, options["notes"] = self._prepared
        prepare(self, first_frame, end, **options)

    monkeypatch.setattr(Successor, "prepare", careless)


def notes_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    restart = Context.restart
    monkeypatch.setattr(Context, "restart", lambda self, notes="": restart(self))


def an_answer_is_not_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Context.end_branch

    def kept(self: Context, *, keep: bool) -> None:
        length = self.language.cache.length
        truncate, self.language.cache.truncate = self.language.cache.truncate, lambda _: None  # type: ignore[method-assign]
        end(self, keep=keep)
        self.language.cache.truncate = truncate  # type: ignore[method-assign]
        assert self.language.cache.length == length

    monkeypatch.setattr(Context, "end_branch", kept)


def frames_that_came_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Context.end_branch

    def forgetful(self: Context, *, keep: bool) -> None:
        if self.branch is not None:
            self.waiting = ()
        end(self, keep=keep)

    monkeypatch.setattr(Context, "end_branch", forgetful)


def frames_that_came_keep_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kept answer, the first of them starts a turn."""
    monkeypatch.setattr(Context, "_told_after", lambda self, pending, frame: frame)


def frames_do_not_wait_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Context.add
    monkeypatch.setattr(Context, "add", lambda self, frame, *, wait: add(self, frame, wait=wait and not self.branch))


def waiting_frames_change_places(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Context._feed
    monkeypatch.setattr(Context, "_feed", lambda self, frames, *rows: feed(self, frames[::-1], *rows))


def opened_stream_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_at = PVCStream._stand_at
    monkeypatch.setattr(PVCStream, "_stand_at", lambda self, snapshot: stand_at(self, replace(snapshot, waiting=())))


FAULTS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    reset_forgets_the_count,
    reset_clears_no_ring,
    reset_leaves_what_waits,
    fork_shares_a_ring,
    fork_shares_a_cache,
    fork_shares_its_context,
    fork_copies_one_row_too_few,
    fork_forgets_its_anchor,
    rollback_one_row_short,
    rollback_clears_nothing,
    slot_off_by_one,
    slot_of_an_absolute_frame,
    kept_question_is_not_kept,
    question_is_kept,
    failed_frame_stays,
    replay_of_the_frame_before,
    prepared_frames_are_left_as_they_are,
    notes_are_lost,
    an_answer_is_not_rolled_back,
    frames_that_came_are_lost,
    frames_that_came_keep_their_text,
    frames_do_not_wait_for_an_answer,
    waiting_frames_change_places,
    opened_stream_waits_for_nothing,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.replace("_", " "))
def test_a_planted_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(Differs):
        run(exact_bundle(tmp_path, trained_frames=TRAINED, **KINDS[kind]))
