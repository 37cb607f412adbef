"""A stream's required state and answers after a list of events, from a fresh stream and from an uncached model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engines import PVCStream
from engines.bundle import Bundle
from engines.memory import Array
from engines.preprocess import to_model_frame

from .exact import Event, Kept, Noted, Whole

NUM_FRAMES = 3  # distinct frames to push; one more is each stream's next frame
Events = tuple[Event, ...]


class Differs(AssertionError):
    """A stream differs from its story."""


def same(what: str, got: object, want: object) -> None:
    """Raise Differs unless both are equal. Arrays must have equal bits, shape and dtype."""
    if not (isinstance(got, np.ndarray) and isinstance(want, np.ndarray)):
        if got != want:
            raise Differs(f"{what}: {got!r}, expected {want!r}")
    elif got.shape != want.shape or got.dtype != want.dtype:
        raise Differs(f"{what}: {got.dtype} {got.shape}, expected {want.dtype} {want.shape}")
    elif got.tobytes() != want.tobytes():
        error = np.abs(got.astype(np.float64) - want)
        raise Differs(f"{what}: {np.count_nonzero(error)} of {error.size} values differ, by {error.max():.2g} at most")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A stream's state: rings (1, W, N, H, D), and the rows (L, K, D) of the LLM's caches."""

    num_frames: int
    context_rows: int
    pending: str
    rings: list[Array]
    rows: list[Array]


class Oracle(Protocol):
    """The required state and answers of a stream with these events."""

    def standing(self, events: Events) -> Standing: ...

    def logits(self, events: Events, question: str, token_ids: Sequence[int]) -> Array: ...

    def answer(self, events: Events, question: str, max_new_tokens: int) -> tuple[tuple[int, ...], bool]: ...

    def next_embeds(self, events: Events) -> Array:
        """The embeddings of the frame that no stream is ever pushed."""
        ...


class Uncached:
    """Whole numbers: the list itself, computed in one go (exact.py)."""

    def __init__(self, bundle: Bundle, frames: Sequence[Array]) -> None:
        self._bundle, self._frames = bundle, frames
        self._memo: dict[Events, tuple[Whole, Standing]] = {}

    def whole(self, events: Events) -> Whole:
        return self._told(events)[0]

    def standing(self, events: Events) -> Standing:
        return self._told(events)[1]

    def logits(self, events: Events, question: str, token_ids: Sequence[int]) -> Array:
        return self.whole(events).logits(question, token_ids)

    def answer(self, events: Events, question: str, max_new_tokens: int) -> tuple[tuple[int, ...], bool]:
        return self.whole(events).answer(question, max_new_tokens)

    def next_embeds(self, events: Events) -> Array:
        return self.whole(events).seen(self._frames[NUM_FRAMES])[2].astype(np.float32)

    def _told(self, events: Events) -> tuple[Whole, Standing]:
        if events not in self._memo:
            whole = Whole(self._bundle, self._frames, events)
            self._memo[events] = whole, self._standing(whole)
        return self._memo[events]

    def _standing(self, whole: Whole) -> Standing:
        temporal, window = self._bundle.manifest.graphs["temporal"], self._bundle.manifest.limits.window
        num_frames, rings = len(whole.frame_rows), []
        for index, state in enumerate(temporal.states):
            shape = list(temporal.input(state.input).resolve({"batch": 1}))
            ring = np.zeros([shape.pop(0), shape.pop(state.slot_axis - 1), *shape], np.float32)
            for t in range(max(num_frames - window, 0), num_frames):
                ring[0, t % window] = whole.frame_rows[t][index]
            rings.append(ring)
        return Standing(
            num_frames=num_frames,
            context_rows=len(whole.embeds),
            pending=whole.pending,
            rings=rings,
            rows=[rows.astype(np.float32) for rows in whole.rows],
        )


class Fresh:
    """A new stream of the same bundle, with the whole list replayed."""

    def __init__(self, bundle: Bundle, frames: Sequence[Array]) -> None:
        self._bundle, self._frames = bundle, frames
        self._memo: dict[Any, Any] = {}

    def standing(self, events: Events) -> Standing:
        return self._told(events)[0]

    def logits(self, events: Events, question: str, token_ids: Sequence[int]) -> Array:
        key = ("logits", events, question, tuple(token_ids))
        return self._once(key, lambda: self._replayed(events).score(question, token_ids))  # type: ignore[no-any-return]

    def answer(self, events: Events, question: str, max_new_tokens: int) -> tuple[tuple[int, ...], bool]:
        key = ("answer", events, question, max_new_tokens)
        answer = self._once(key, lambda: self._replayed(events).ask(question, max_new_tokens=max_new_tokens))
        return answer.token_ids, answer.finished

    def next_embeds(self, events: Events) -> Array:
        return self._told(events)[1]

    def _told(self, events: Events) -> tuple[Standing, Array]:
        def look() -> tuple[Standing, Array]:
            stream = self._replayed(events)
            return standing_of(stream), next_embeds_of(stream, self._frames[NUM_FRAMES])

        return self._once(("told", events), look)  # type: ignore[no-any-return]

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def _replayed(self, events: Events) -> PVCStream:
        stream = PVCStream(self._bundle, clock="run-on")
        for event in events:
            if isinstance(event, Noted):
                stream.remember(event.text)
            elif isinstance(event, Kept):
                said = stream.ask(event.question, max_new_tokens=max(len(event.token_ids), 1), keep=True)
                same("a replayed answer", said.token_ids, event.token_ids)
            else:
                stream.push(self._frames[event])
        return stream


def standing_of(stream: PVCStream) -> Standing:
    """The state of an actual stream. Its rows are those the LLM has taken in."""
    graphs, ring, cache = stream._bundle.manifest.graphs, stream.vision.ring.dump(), stream.language.cache.dump()
    return Standing(
        num_frames=stream.num_context_frames,
        context_rows=stream.context_rows,
        pending=stream.context.pending,
        rings=[np.moveaxis(ring[s.input], s.slot_axis, 1).copy() for s in graphs["temporal"].states],
        rows=[s.as_rows(cache[s.input])[0].copy() for s in graphs["llm"].states],
    )


def next_embeds_of(stream: PVCStream, frame: Array) -> Array:
    """The embeddings of a frame if it were pushed now."""
    size = stream._bundle.manifest.shape.image_size
    return stream.vision.encode(to_model_frame(frame, size=size)).frame_embeds
