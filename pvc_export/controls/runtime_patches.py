"""Faults of the runtime and of its inputs: each replaces one function of the runtime until the end of its block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from engines import device_frames, images
from engines.cache import LinearCache, RingCache
from engines.context import Context, FrameRows
from engines.episode import Episode
from engines.episodes import Episodes
from engines.language import LanguageModel
from engines.memory import Array, Tensor
from engines.prompt import PromptTokenizer
from engines.session import OrtSession
from engines.successor import Successor
from engines.vision import EncodedFrame, VisionEncoder

Fault = Callable[[], AbstractContextManager[None]]
Feeds = Callable[..., dict[str, Any]]
Push = Callable[..., None]
Run = Callable[..., dict[str, Tensor]]
ToModelFrame = Callable[..., Array]
ToTiles = Callable[..., Array]


def replaces(owner: Any, name: str) -> Callable[[Callable[..., Any]], Fault]:
    """Make a fault from a function that replaces `owner.name` and gets the original as its first argument."""

    def fault_of(wrong: Callable[..., Any]) -> Fault:
        @contextmanager
        def fault() -> Iterator[None]:
            true = getattr(owner, name)

            def stand_in(*args: Any, **kwargs: Any) -> Any:
                return wrong(true, *args, **kwargs)

            setattr(owner, name, stand_in)
            try:
                yield
            finally:
                setattr(owner, name, true)

        fault.__name__ = wrong.__name__
        return fault

    return fault_of


@replaces(RingCache, "feeds")
def mask_one_slot_off(feeds: Feeds, ring: RingCache) -> dict[str, Any]:
    fed = feeds(ring)
    return fed | {"slot_mask": np.roll(np.asarray(fed["slot_mask"]), 1, axis=1)}


@replaces(RingCache, "feeds")
def window_one_frame_too_long(feeds: Feeds, ring: RingCache) -> dict[str, Any]:
    """The slot that is overwritten next stays readable."""
    return feeds(ring) | {"slot_mask": np.arange(ring.window)[None] < ring.num_frames}


@replaces(RingCache, "push")
def rows_one_slot_off(_: Push, ring: RingCache, rows: Mapping[str, Tensor]) -> None:
    slot = (ring.num_frames + 1) % ring.window
    for state in ring._states:
        ring._memory.place(ring._rings[state.input], rows[state.output], state, slot)
    ring.num_frames += 1


@replaces(RingCache, "push")
def every_second_row_kept(push: Push, ring: RingCache, rows: Mapping[str, Tensor]) -> None:
    """A stale state: the rows of every second frame are not written to the ring."""
    if ring.num_frames % 2:
        ring.num_frames += 1
    else:
        push(ring, rows)


@replaces(RingCache, "push")
def ring_never_wraps(push: Push, ring: RingCache, rows: Mapping[str, Tensor]) -> None:
    """Frames after a full window are not written: the ring goes stale instead of wrapping around."""
    if ring.num_frames < ring.window:
        push(ring, rows)
    else:
        ring.num_frames += 1


@replaces(VisionEncoder, "encode_features")
def clock_one_ahead(encode: Callable[..., EncodedFrame], encoder: VisionEncoder, features: Tensor) -> EncodedFrame:
    divisor, num_frames = encoder.time_divisor, encoder.ring.num_frames
    encoder.time_divisor = num_frames / (num_frames + 1) if num_frames else divisor  # type: ignore[assignment]
    try:
        return encode(encoder, features)
    finally:
        encoder.time_divisor = divisor


@replaces(LinearCache, "feeds")
def positions_one_ahead(feeds: Feeds, cache: LinearCache, num_rows: int) -> dict[str, Any]:
    fed = feeds(cache, num_rows)
    return fed | {"position_ids": np.asarray(fed["position_ids"]) + (cache.length > 0)}


@replaces(LinearCache, "feeds")
def last_row_written_over(feeds: Feeds, cache: LinearCache, num_rows: int) -> dict[str, Any]:
    """In a cache updated in place, the newest row is overwritten; in one with buckets, the empty tail is read."""
    return last_row_hidden(feeds(cache, num_rows))


def last_row_hidden(fed: dict[str, Any]) -> dict[str, Any]:
    if "write_index" in fed:
        return fed | {"write_index": np.maximum(np.asarray(fed["write_index"]) - 1, 0)}
    return fed | {"attention_mask": np.ones_like(np.asarray(fed["attention_mask"]))}


@replaces(LinearCache, "feeds")
def newest_row_hidden_late(feeds: Feeds, cache: LinearCache, num_rows: int) -> dict[str, Any]:
    """The same fault at one place only, the last row of a context of 512."""
    return last_row_hidden(feeds(cache, num_rows)) if cache.length == 511 else feeds(cache, num_rows)


@replaces(LanguageModel, "logits")
def least_likely_token(logits: Callable[..., Array], language: LanguageModel, hidden: Tensor) -> Array:
    return -logits(language, hidden)


@replaces(VisionEncoder, "reset")
def reset_forgets_nothing(_: Callable[..., None], encoder: VisionEncoder) -> None:
    pass


@replaces(LinearCache, "truncate")
def questions_are_kept(truncate: Callable[..., None], cache: LinearCache, length: int) -> None:
    """Questions stay in the context instead of being rolled back."""
    if length == 0:
        truncate(cache, length)


@contextmanager
def streams_share_a_ring() -> Iterator[None]:
    """All streams of a bundle write into one ring."""
    shared: dict[int, RingCache] = {}

    def first(ring: RingCache) -> RingCache:
        return shared.setdefault(ring.window, ring)

    @replaces(RingCache, "feeds")
    def read_the_first(feeds: Feeds, ring: RingCache) -> dict[str, Any]:
        return {**first(ring)._rings, "slot_mask": feeds(ring)["slot_mask"]}

    @replaces(RingCache, "push")
    def write_the_first(push: Push, ring: RingCache, rows: Mapping[str, Tensor]) -> None:
        own, ring._rings = ring._rings, first(ring)._rings
        try:
            push(ring, rows)
        finally:
            ring._rings = own

    with read_the_first(), write_the_first():
        yield


@replaces(OrtSession, "run")
def session_writes_into_its_input(run: Run, session: OrtSession, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A graph that changes the ring it reads, although its spec does not say so."""
    outputs = run(session, inputs)
    ring = inputs.get("past.0.key")
    if isinstance(ring, np.ndarray) and session.spec.name == "temporal":
        ring[...] *= ring.dtype.type(1.5)
    return outputs


@contextmanager
def noise_of_its_own() -> Iterator[None]:
    """A backend that never returns the same bits twice."""
    rng = np.random.default_rng(0)

    @replaces(OrtSession, "run")
    def noisy_run(run: Run, session: OrtSession, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = run(session, inputs)
        if session.spec.name == "compressor":
            embeds = np.asarray(outputs["frame_embeds"])
            noisy = embeds * (1 + 1e-7 * rng.normal(size=embeds.shape))
            outputs["frame_embeds"] = noisy.astype(embeds.dtype)
        return outputs

    with noisy_run():
        yield


@replaces(device_frames, "to_model_frame")
def colours_swapped(to_model_frame: ToModelFrame, frame: Array, *, size: int) -> Array:
    return to_model_frame(frame[..., ::-1], size=size)


@replaces(device_frames, "to_model_frame")
def resized_by_opencv(_: ToModelFrame, frame: Array, *, size: int) -> Array:
    import cv2  # from the extra `apps`, which a check does not need

    resized = cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(resized[..., ::-1])


@replaces(Context, "frame")
def frames_counted_from_zero(
    rows_of: Callable[..., FrameRows], context: Context, frame_embeds: Array, *, index: int, pending: str | None = None
) -> FrameRows:
    """The prompt begins with 'Frame0:', but the model was trained on 'Frame1:'."""
    return rows_of(context, frame_embeds, index=index - 1, pending=pending)


@replaces(PromptTokenizer, "encode")
def tokens_of_another_vocabulary(encode: Callable[..., list[int]], tokenizer: PromptTokenizer, text: str) -> list[int]:
    """Every second token id is off by one, as with a tokenizer of another release."""
    return [max(token - 1, 0) if index % 2 else token for index, token in enumerate(encode(tokenizer, text))]


@replaces(PromptTokenizer, "decode")
def text_in_lower_case(decode: Callable[..., str], tokenizer: PromptTokenizer, ids: list[int]) -> str:
    """The tokens of an answer are right, but its text is not."""
    return decode(tokenizer, ids).lower()


@replaces(images, "to_tiles")
def thumbnail_first(to_tiles: ToTiles, image: Array, **sizes: int) -> Array:
    return np.roll(to_tiles(image, **sizes), 1, axis=0)


@replaces(images, "to_tiles")
def tiles_column_by_column(to_tiles: ToTiles, image: Array, **sizes: int) -> Array:
    """Only for six tiles or more; smaller images are cut correctly."""
    tiles = to_tiles(image, **sizes)
    if len(tiles) < 7:
        return tiles
    rows = int((len(tiles) - 1) ** 0.5)
    order = np.arange(len(tiles) - 1).reshape(rows, -1).T.ravel()
    return np.concatenate([tiles[order], tiles[-1:]])


@replaces(Context, "next_turn")
def answer_without_its_end(next_turn: Callable[..., None], context: Context) -> None:
    """The token that ends a kept answer is lost, so the next question appears to be part of the answer."""
    next_turn(context)
    context.pending = context.pending.removeprefix("<|im_end|>")


@replaces(Context, "take_in")
def waiting_frames_out_of_order(take_in: Callable[..., None], context: Context, num_frames: int) -> None:
    context.waiting = (*reversed(context.waiting[:num_frames]), *context.waiting[num_frames:])
    take_in(context, num_frames)


@replaces(Context, "take_in")
def a_waiting_frame_dropped(take_in: Callable[..., None], context: Context, num_frames: int) -> None:
    """The last of several frames that are ingested together is dropped."""
    if num_frames > 1:
        context.waiting = (*context.waiting[: num_frames - 1], *context.waiting[num_frames:])
    take_in(context, min(num_frames, len(context.waiting)))


@replaces(Successor, "prepare")
def replay_without_time(
    _: Push, successor: Successor, first_frame: int, end: int, *, notes: str, steps: int = 0
) -> None:
    """The replayed frames reach the LLM in reverse order."""
    vision, context, embeds = successor.episode.vision, successor.episode.context, []
    successor.episode.reset(notes)
    for frame in range(first_frame, end):
        encoded = vision.encode_features(successor._retained.of(frame))
        vision.commit(encoded)
        embeds.append(encoded.frame_embeds)
    for index, rows in enumerate(reversed(embeds), start=1):
        context.add(context.frame(rows, index=index), wait=False)
    successor._prepared = first_frame, notes


@replaces(Episodes, "_start_anew")
def newest_frame_lost(start_anew: Callable[..., float], episodes: Episodes, trunk_features: Tensor) -> float:
    """A re-anchored stream gets its last replayed frame twice and never the newest one."""
    assert episodes._successor is not None
    episode = episodes._successor.episode
    frame, newest = episode.context.frame, episodes.num_retained + 1

    def told(embeds: Array, *, index: int) -> FrameRows:
        return frame(episode.newest if index == newest and episode.newest is not None else embeds, index=index)

    with patch.object(episode.context, "frame", told):
        return start_anew(episodes, trunk_features)


@replaces(Episode, "push")
def first_frames_counted_on(push: Push, episode: Episode, trunk_features: Tensor) -> None:
    """A re-anchored stream does not number its frames from 1."""
    frame = episode.context.frame
    with patch.object(episode.context, "frame", lambda embeds, *, index: frame(embeds, index=index + 1)):
        push(episode, trunk_features)
