"""PVCStream: push frames, ask questions. One camera's view of a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from .answer import Answer, PushTiming
from .bundle import Bundle
from .clock import Clock, resolve_clock
from .errors import NonFiniteError, StreamError
from .images import ImageEncoder
from .ingest import Ingest, WaitingFrame
from .language import LanguageModel
from .memory import Array
from .preprocess import to_model_frame
from .saved import bundle_id, write_saved
from .snapshot import Snapshot
from .vision import EncodedFrame, Replay, VisionEncoder


class PVCStream:
    """A stream of frames with its own temporal and LLM caches; sessions are shared through the bundle.

    State changes only after everything of a call succeeded: a frame that fails leaves the stream as it was.
    `vision` and `language` are its two halves, each with its cache.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        total_frames: int | None = None,
        ingest: Ingest = "eager",
        max_waiting: int = 16,
        clock: Clock | None = None,
        retain: int | None = None,
    ) -> None:
        """total_frames is needed by models whose time is `fixed` (t / T) and refused for all others.

        clock   what happens at the frame count that the model was trained on; None is DEFAULT_CLOCK where it can be
        retain  frames that a re-anchor replays, 1 <= retain <= window and < trained_frames; None is DEFAULT_RETAIN, or
                as many as fit
        Raises StreamError when these do not fit the model, and for an `ingest` or `max_waiting` that cannot be.
        """
        manifest = bundle.manifest
        if total_frames is not None and total_frames < 1:
            raise StreamError(f"total_frames is {total_frames}, expected at least 1: the number of frames of the clip")
        if (manifest.time_mode == "fixed") != (total_frames is not None):
            raise StreamError(
                f"this model's time mode is '{manifest.time_mode}', so total_frames must be "
                f"{'given' if total_frames is None else 'left out'}, but it is {total_frames}"
            )
        if ingest not in get_args(Ingest) or max_waiting < 1:
            raise StreamError(
                f"ingest is {ingest!r} and max_waiting {max_waiting}, expected one of {get_args(Ingest)} and at least 1"
            )
        self._bundle = bundle
        self._spec, self._tokenizer = manifest.prompt, bundle.tokenizer
        self._total_frames, self._ingest, self._max_waiting = total_frames, ingest, max_waiting
        self.clock, self._num_retained = resolve_clock(manifest, clock, retain)
        self._image_size = manifest.shape.image_size
        self._num_frame_tokens = manifest.shape.num_frame_tokens
        self.vision = VisionEncoder(bundle.sessions, time_divisor=total_frames or 1, retain=self._num_retained)
        self.language = LanguageModel(bundle.sessions)
        self._images = ImageEncoder(bundle.sessions, manifest)
        self._pending = self._spec.start  # text that waits for the next special token
        self._waiting: list[WaitingFrame] = []

    @property
    def num_frames(self) -> int:
        """Frames that were pushed, those that a re-anchor forgot included."""
        return self.vision.num_frames

    @property
    def num_context_frames(self) -> int:
        """Frames since the stream began or was last re-anchored, the replayed ones included: the next frame's time."""
        return self.vision.ring.num_frames

    @property
    def num_anchors(self) -> int:
        """How many times the stream was re-anchored."""
        return self.vision.anchor.index

    @property
    def num_waiting(self) -> int:
        """Frames that the LLM has not taken in yet."""
        return len(self._waiting)

    @property
    def context_rows(self) -> int:
        """LLM rows in use, of the bundle's `context`; those of frames that wait are counted."""
        return self.language.cache.length + self._waiting_rows()

    def push(self, frame_bgr: Array) -> PushTiming:
        """Let the model see the next frame: (H, W, 3) uint8 BGR of any size.

        With clock 'reanchor', a frame whose time would lie beyond training first starts the stream anew: the last
        `retain` frames are replayed as its first, and all else is forgotten, kept questions and answers included.
        Raises FrameError for anything else, and StreamFull when the frame's tokens do not fit in the context. Whatever
        is raised, the frame is not part of the stream. Where the LLM fails as a stream starts anew, the rest of that is
        done: the replayed frames wait, and the next frame or question takes them in.
        """
        if self.num_frames == self._total_frames:
            raise StreamError(
                f"all {self._total_frames} frames of this stream were pushed; reset it, or make a new one"
            )
        started = time.perf_counter()
        frame = to_model_frame(frame_bgr, size=self._image_size)
        resized = time.perf_counter()
        replay = self.vision.encode_anew(frame) if self._is_due() else None
        encoded = self.vision.encode(frame) if replay is None else replay.newest
        seen = time.perf_counter()
        if replay is None:
            rows = self._frame_rows(self._pending, self.num_context_frames + 1, encoded.frame_embeds)
        else:
            rows = self._start_anew(replay)
        self._take(rows, encoded)
        done = time.perf_counter()
        return PushTiming(
            preprocess_ms=1e3 * (resized - started), vision_ms=1e3 * (seen - resized), ingest_ms=1e3 * (done - seen)
        )

    def ask(
        self,
        question: str,
        *,
        images: Sequence[Array] = (),
        max_tiles: int | None = None,
        max_new_tokens: int = 64,
        keep: bool = False,
    ) -> Answer:
        """Ask about everything pushed so far; the likeliest token is taken at every step.

        images     (H, W, 3) uint8 BGR of any size, each cut into at most max_tiles tiles and a thumbnail, by default as
                   many as the model was made for. They come before the question, or where it says <image>
        keep=False rolls question and answer back afterwards: the context's length is set back, and no cache is copied.
        keep=True  leaves them in the context, so that later questions can refer to them, until the stream re-anchors.
        Raises StreamFull before anything is run if question and answer might not fit, FrameError for what is no image,
        and StreamError for a question that holds a special token of the conversation, or not one <image> an image.
        """
        if max_new_tokens < 1:
            raise StreamError(f"max_new_tokens is {max_new_tokens}, expected at least 1: an answer has a token")
        started = time.perf_counter()
        rows = self._question_rows(question, images, max_tiles=max_tiles, num_reserved=max_new_tokens)
        encoded = time.perf_counter()
        language, mark = self.language, self.context_rows
        pending: str | None = None
        tokens: list[int] = []
        finished = False
        try:
            hidden, pending = self._append(rows), self._pending
            logits = language.logits(hidden)
            prefilled = time.perf_counter()
            while not (finished := (token := int(logits.argmax())) in self._tokenizer.stop_ids):
                tokens.append(token)
                hidden = language.append(language.embed([token]))
                if len(tokens) == max_new_tokens:
                    break
                logits = language.logits(hidden)
            if keep:
                self._pending = self._spec.next_turn
            else:
                language.cache.truncate(mark)
        except BaseException:
            self._roll_back(mark)
            self._pending = self._pending if pending is None else pending
            raise
        return Answer(
            text=self._tokenizer.decode(tokens),
            token_ids=tuple(tokens),
            finished=finished,
            vision_ms=1e3 * (encoded - started) if images else 0.0,
            prefill_ms=1e3 * (prefilled - (encoded if images else started)),
            decode_ms=1e3 * (time.perf_counter() - prefilled),
        )

    def score(
        self, question: str, token_ids: Sequence[int], *, images: Sequence[Array] = (), max_tiles: int | None = None
    ) -> Array:
        """What the model would have said at each step of a given answer (teacher forcing), rolled back afterwards.

        Returns float32 logits (len(token_ids) + 1, V): row i is what follows the first i tokens. Raises what ask does,
        and StreamError for what is no token id.
        """
        vocab_size = self._bundle.manifest.shape.vocab_size
        if wrong := [
            token for token in token_ids if not (isinstance(token, int | np.integer) and 0 <= token < vocab_size)
        ]:
            raise StreamError(f"token ids are integers from 0 to {vocab_size - 1}, but {wrong[0]!r} was given")
        rows = self._question_rows(question, images, max_tiles=max_tiles, num_reserved=len(token_ids))
        language, mark = self.language, self.context_rows
        try:
            logits = [language.logits(self._append(rows))]
            logits += [language.logits(language.append(language.embed([token]))) for token in token_ids]
            language.cache.truncate(mark)
        except BaseException:
            self._roll_back(mark)
            raise
        return np.stack(logits)

    def encode_image(self, image_bgr: Array, *, max_tiles: int | None = None) -> Array:
        """An image as the LLM sees it, (rows, E): a static video, which leaves this stream's frames alone.

        Tokens are ordered (tile, repeat, token). Raises FrameError for anything but (H, W, 3) uint8 BGR.
        """
        return self._images.encode(image_bgr, max_tiles=max_tiles)

    def rows_needed(self, num_frames: int, *, question: str, max_new_tokens: int) -> int:
        """Most context rows that a fresh stream of this clock uses for so many frames, a question, and its answer."""
        if self.clock == "reanchor":
            num_frames = min(num_frames, self._bundle.manifest.trained_frames)
        pending, rows = self._spec.start, 0
        for index in range(1, num_frames + 1):
            rows += len(self._tokenizer.encode(pending + self._spec.before_frame(index))) + self._num_frame_tokens
            pending = self._spec.behind_frame()
        return rows + len(self._tokenizer.encode(pending + question + self._spec.ask_suffix)) + max_new_tokens

    def save(self, path: str | Path) -> None:
        """Write this stream to a file, from which `open_stream` continues it, after any number of restarts.

        An older file of that name is replaced in one step. Raises BackendUnavailable if it cannot be written; the
        stream itself goes on either way.
        """
        snapshot, vision, cache = Snapshot.of(self), self.vision, self.language.cache
        facts = snapshot.to_json() | {
            "bundle_id": bundle_id(self._bundle),
            "bundle": str(self._bundle.folder.resolve()),
            "num_frames": vision.ring.num_frames,
            "language_rows": cache.length,
        }
        parts = {"vision": vision.ring.dump(), "retained": vision.retained.dump(), "language": cache.dump()}
        parts["waiting"] = {str(index): frame.rows for index, frame in enumerate(snapshot.waiting)}
        arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
        write_saved(Path(path), facts, arrays)

    def fork(self) -> PVCStream:
        """A second stream that starts where this one stands, its clock, anchor and all that waits included. From there
        on each goes its own way.

        The bundle and its sessions stay shared, as by any two streams: one call at a time. The fork has caches of its
        own, which cost the memory of a new stream, and it copies what is in use: min(num_context_frames, window) rows
        of each ring, the retained frames, and the LLM's rows. On a GPU none of it comes to the host. Raises
        MemoryError, or BackendUnavailable for a GPU's memory; whatever is raised, this stream is as it was.
        """
        snapshot = Snapshot.of(self)
        fork = PVCStream(self._bundle, **snapshot.options)
        fork.vision.copy_from(self.vision)
        fork.language.cache.copy_from(self.language.cache)
        snapshot.put_into(fork)
        return fork

    def reset(self) -> None:
        """Forget everything: frames, questions, answers. An interrupt waits until all of it is forgotten."""
        try:
            self._forget()
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        self._waiting.clear()
        self._pending = self._spec.start
        self.vision.reset()
        self.language.cache.truncate(0)

    def _question_rows(
        self, question: str, images: Sequence[Array], *, max_tiles: int | None, num_reserved: int
    ) -> Array:
        """Embeddings (L, E) of what follows the frames, up to where the answer starts."""
        self._tokenizer.refuse_special_tokens(question)
        spec, language = self._spec, self.language
        pieces = spec.around_images(question, len(images))
        starts = [self._pending, *(spec.image_end for _ in images)]
        ends = [*(spec.image_start for _ in images), spec.ask_suffix]
        ids = [self._tokenizer.encode(a + piece + b) for a, piece, b in zip(starts, pieces, ends, strict=True)]
        num_rows = sum(self._images.num_rows(image, max_tiles=max_tiles) for image in images) + sum(map(len, ids))
        language.cache.reserve(self._waiting_rows() + num_rows + num_reserved)
        rows = [language.embed(ids[0])]
        for image, after in zip(images, ids[1:], strict=True):
            rows += [self._images.encode(image, max_tiles=max_tiles), language.embed(after)]
        return np.concatenate(rows)

    def _frame_rows(self, pending: str, index: int, frame_embeds: Array) -> Array:
        """Text that waits, the frame's prefix, and the frame: (L, E)."""
        ids = self._tokenizer.encode(pending + self._spec.before_frame(index))
        return np.concatenate([self.language.embed(ids), frame_embeds])

    def _waiting_rows(self) -> int:
        return sum(len(frame.rows) for frame in self._waiting)

    def _is_due(self) -> bool:
        return self.clock == "reanchor" and self.num_context_frames >= self._bundle.manifest.trained_frames

    def _start_anew(self, replay: Replay) -> Array:
        """Forget all but the replayed frames, which then wait for the LLM. The rows of the new frame behind them.

        Whatever can fail comes first; an interrupt of the rest waits until it is done.
        """
        waiting: list[WaitingFrame] = []
        pending = self._spec.start
        for index, embeds in enumerate((*replay.frame_embeds, replay.newest.frame_embeds), start=1):
            waiting.append(WaitingFrame(rows=self._frame_rows(pending, index, embeds), pending=pending, index=index))
            pending = self._spec.behind_frame()
        newest = waiting.pop()
        try:
            self._adopt(replay, waiting)
        except BaseException:
            self._adopt(replay, waiting)
            raise
        return newest.rows

    def _adopt(self, replay: Replay, waiting: list[WaitingFrame]) -> None:
        self.vision.anchor = replay.anchor
        self._waiting[:], self._pending = waiting, self._spec.behind_frame()
        self.language.cache.truncate(0)

    def _append(self, rows: Array, num_waiting: int | None = None) -> Array:
        """Frames that wait, all or the first of them, then `rows`, in as few passes as `chunk` allows; the last hidden
        row. All or nothing."""
        count = len(self._waiting) if num_waiting is None else num_waiting
        start, taken, behind = self.language.cache.length, self._waiting[:count], self._waiting[count:]
        try:
            hidden = self.language.append(np.concatenate([*(frame.rows for frame in taken), rows]))
            self._waiting[:] = behind
        except BaseException as error:
            if len(self._waiting) > len(behind) or not taken:
                self.language.cache.truncate(start)
            if isinstance(error, NonFiniteError):
                self._drop_what_overflows(start)
            raise
        return hidden

    def _drop_what_overflows(self, start: int) -> None:
        """Of the frames that wait, find the first that the LLM returns NaN for, and let it go; its text stays."""
        try:
            for index, frame in enumerate(self._waiting):
                try:
                    self.language.append(frame.rows)
                except NonFiniteError as error:
                    waiting = self._waiting[:index] + self._waiting[index + 1 :]
                    if index < len(waiting):
                        behind = waiting[index]
                        embeds = behind.rows[-self._num_frame_tokens :]
                        rows = self._frame_rows(frame.pending, behind.index, embeds)
                        waiting[index] = replace(behind, rows=rows, pending=frame.pending)
                    else:
                        self._pending = frame.pending
                    self._waiting[:] = waiting
                    raise NonFiniteError(f"frame {frame.index}, which waited, was dropped: {error}") from error
        finally:
            self.language.cache.truncate(start)

    def _roll_back(self, mark: int) -> None:
        """Forget what lies behind `mark`, unless frames still wait: then nothing of a question was kept."""
        if self.language.cache.length > mark:
            self.language.cache.truncate(mark)

    def _take(self, rows: Array, encoded: EncodedFrame) -> None:
        """Rows to the LLM, or to those that wait; then the frame into the ring: its count is what makes it seen.

        An interrupt may strike between any two statements, so the rest goes back unless that count has moved.
        """
        batch = self._max_waiting if self._ingest == "lazy" else 1  # replayed frames: in the passes of their first time
        while len(self._waiting) >= batch:
            self._append(rows[:0], num_waiting=batch)
        if self._ingest == "lazy":
            self.language.cache.reserve(self._waiting_rows() + len(rows))
        mark, pending, num_frames = self.language.cache.length, self._pending, self.num_frames
        waiting = list(self._waiting)
        try:
            if self._ingest == "lazy":
                self._waiting.append(WaitingFrame(rows=rows, pending=pending, index=self.num_context_frames + 1))
            else:
                self.language.append(rows)
            self._pending = self._spec.behind_frame()
            self.vision.commit(encoded)
        except BaseException:
            if self.num_frames == num_frames:
                self.language.cache.truncate(mark)
                self._waiting[:], self._pending = waiting, pending
            raise
