"""Faults of the runtime and of what it is fed: each a patch that lasts as long as its block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

import engines.stream
from engines.cache import LinearCache, RingCache
from engines.context import Context, FrameRows
from engines.language import LanguageModel
from engines.memory import Array, Tensor
from engines.preprocess import to_model_frame
from engines.prompt import PromptTokenizer
from engines.session import OrtSession
from engines.vision import EncodedFrame, VisionEncoder


@contextmanager
def mask_one_slot_off() -> Iterator[None]:
    feeds = RingCache.feeds

    def wrong(self: RingCache) -> dict[str, Any]:
        fed = feeds(self)
        return fed | {"slot_mask": np.roll(np.asarray(fed["slot_mask"]), 1, axis=1)}

    with patch.object(RingCache, "feeds", wrong):
        yield


@contextmanager
def window_one_frame_too_long() -> Iterator[None]:
    """The slot that is about to be overwritten stays readable."""
    feeds = RingCache.feeds

    def wrong(self: RingCache) -> dict[str, Any]:
        return feeds(self) | {"slot_mask": np.arange(self.window)[None] < self.num_frames}

    with patch.object(RingCache, "feeds", wrong):
        yield


@contextmanager
def rows_one_slot_off() -> Iterator[None]:
    def wrong(self: RingCache, rows: Mapping[str, Tensor]) -> None:
        slot = (self.num_frames + 1) % self.window
        for state in self._states:
            self._memory.place(self._rings[state.input], rows[state.output], state, slot)
        self.num_frames += 1

    with patch.object(RingCache, "push", wrong):
        yield


@contextmanager
def every_second_row_kept() -> Iterator[None]:
    """A stale state: of every second frame the ring keeps what it held before."""
    push = RingCache.push

    def wrong(self: RingCache, rows: Mapping[str, Tensor]) -> None:
        if self.num_frames % 2:
            self.num_frames += 1
        else:
            push(self, rows)

    with patch.object(RingCache, "push", wrong):
        yield


@contextmanager
def ring_never_wraps() -> Iterator[None]:
    """Frames behind a full window are not kept: the ring goes stale where it should begin anew."""
    push = RingCache.push

    def wrong(self: RingCache, rows: Mapping[str, Tensor]) -> None:
        if self.num_frames < self.window:
            push(self, rows)
        else:
            self.num_frames += 1

    with patch.object(RingCache, "push", wrong):
        yield


@contextmanager
def clock_one_ahead() -> Iterator[None]:
    encode = VisionEncoder.encode

    def wrong(self: VisionEncoder, frame: Array) -> EncodedFrame:
        divisor = self.time_divisor
        self.time_divisor = self.num_frames / (self.num_frames + 1) if self.num_frames else divisor  # type: ignore[assignment]
        try:
            return encode(self, frame)
        finally:
            self.time_divisor = divisor

    with patch.object(VisionEncoder, "encode", wrong):
        yield


@contextmanager
def positions_one_ahead() -> Iterator[None]:
    feeds = LinearCache.feeds

    def wrong(self: LinearCache, num_rows: int) -> dict[str, Any]:
        fed = feeds(self, num_rows)
        return fed | {"position_ids": np.asarray(fed["position_ids"]) + (self.length > 0)}

    with patch.object(LinearCache, "feeds", wrong):
        yield


@contextmanager
def last_row_written_over() -> Iterator[None]:
    """Of a cache in place, the newest row is written over; of one that is fed in buckets, the empty tail is read."""
    feeds = LinearCache.feeds

    def wrong(self: LinearCache, num_rows: int) -> dict[str, Any]:
        fed = feeds(self, num_rows)
        if "write_index" in fed:
            return fed | {"write_index": np.maximum(np.asarray(fed["write_index"]) - 1, 0)}
        return fed | {"attention_mask": np.ones_like(np.asarray(fed["attention_mask"]))}

    with patch.object(LinearCache, "feeds", wrong):
        yield


@contextmanager
def least_likely_token() -> Iterator[None]:
    logits = LanguageModel.logits
    with patch.object(LanguageModel, "logits", lambda self, hidden: -logits(self, hidden)):
        yield


@contextmanager
def reset_forgets_nothing() -> Iterator[None]:
    with patch.object(VisionEncoder, "reset", lambda self: None):
        yield


@contextmanager
def questions_are_kept() -> Iterator[None]:
    """What was asked and should be rolled back stays in the context."""
    truncate = LinearCache.truncate

    def wrong(self: LinearCache, length: int) -> None:
        if length == 0:
            truncate(self, length)

    with patch.object(LinearCache, "truncate", wrong):
        yield


@contextmanager
def streams_share_a_ring() -> Iterator[None]:
    """All streams of a bundle write into one ring."""
    shared: dict[int, RingCache] = {}
    feeds, push = RingCache.feeds, RingCache.push

    def first(self: RingCache) -> RingCache:
        return shared.setdefault(self.window, self)

    def wrong_feeds(self: RingCache) -> dict[str, Any]:
        return {**first(self)._rings, "slot_mask": feeds(self)["slot_mask"]}

    def wrong_push(self: RingCache, rows: Mapping[str, Tensor]) -> None:
        own, self._rings = self._rings, first(self)._rings
        try:
            push(self, rows)
        finally:
            self._rings = own

    with patch.object(RingCache, "feeds", wrong_feeds), patch.object(RingCache, "push", wrong_push):
        yield


@contextmanager
def session_writes_into_its_input() -> Iterator[None]:
    """A graph that changes the ring that it reads, which nobody declared."""
    run = OrtSession.run

    def wrong(self: OrtSession, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = run(self, inputs)
        ring = inputs.get("past.0.key")
        if isinstance(ring, np.ndarray) and self.spec.name == "temporal":
            ring[...] *= ring.dtype.type(1.5)
        return outputs

    with patch.object(OrtSession, "run", wrong):
        yield


@contextmanager
def noise_of_its_own() -> Iterator[None]:
    """A backend that never returns the same bits twice."""
    run, rng = OrtSession.run, np.random.default_rng(0)

    def wrong(self: OrtSession, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = run(self, inputs)
        if self.spec.name == "compressor":
            embeds = np.asarray(outputs["frame_embeds"])
            noisy = embeds * (1 + 1e-7 * rng.normal(size=embeds.shape))
            outputs["frame_embeds"] = noisy.astype(embeds.dtype)
        return outputs

    with patch.object(OrtSession, "run", wrong):
        yield


@contextmanager
def colours_swapped() -> Iterator[None]:
    with patch.object(
        engines.stream, "to_model_frame", lambda frame, *, size: to_model_frame(frame[..., ::-1], size=size)
    ):
        yield


@contextmanager
def resized_by_opencv() -> Iterator[None]:
    import cv2  # of the extra `apps`, which a check does without

    def wrong(frame: Array, *, size: int) -> Array:
        resized = cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC)
        return np.ascontiguousarray(resized[..., ::-1])

    with patch.object(engines.stream, "to_model_frame", wrong):
        yield


@contextmanager
def frames_counted_from_zero() -> Iterator[None]:
    """The prompt says 'Frame0:' where the model was trained on 'Frame1:'."""
    frame = Context.frame

    def wrong(self: Context, frame_embeds: Array, *, index: int, pending: str | None = None) -> FrameRows:
        return frame(self, frame_embeds, index=index - 1, pending=pending)

    with patch.object(Context, "frame", wrong):
        yield


@contextmanager
def tokens_of_another_vocabulary() -> Iterator[None]:
    """Every second token is the one beside it: a tokenizer of another release."""
    encode = PromptTokenizer.encode

    def wrong(self: PromptTokenizer, text: str) -> list[int]:
        return [max(token - 1, 0) if index % 2 else token for index, token in enumerate(encode(self, text))]

    with patch.object(PromptTokenizer, "encode", wrong):
        yield
