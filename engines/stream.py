"""PVCStream: push frames, ask questions. One camera's view of a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from .answer import Answer, PushTiming
from .bundle import Bundle
from .clock import Clock, resolve_clock
from .context import Context, FrameRows
from .device_frames import FrameTaker
from .errors import StreamError
from .images import ImageEncoder
from .ingest import Ingest
from .memory import Array
from .saved import Snapshot, StreamOptions, read_saved, write_saved
from .vision import EncodedFrame, Replay, VisionEncoder


class PVCStream:
    """A stream of frames with its own temporal and LLM caches; sessions are shared through the bundle.

    State changes only after everything of a call succeeded: a frame that fails leaves the stream as it was.

    vision    the frames that it remembers
    context   the conversation about them; `language` is its LLM
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

        clock   what happens at the frame count that the model was trained on; None is DEFAULT_CLOCK where it can be,
                and 'reanchor' for a bundle that was exported so
        retain  frames that a re-anchor replays, 1 <= retain <= window and < trained_frames; None is DEFAULT_RETAIN, or
                as many as fit
        Raises StreamError when these do not fit the model, and for an `ingest` or `max_waiting` that cannot be.
        """
        manifest = bundle.manifest
        if total_frames is not None and total_frames < 1:
            raise StreamError(
                f"total_frames is {total_frames}", expected="at least 1: the number of frames of the clip"
            )
        if (manifest.time_mode == "fixed") != (total_frames is not None):
            raise StreamError(
                f"total_frames is {total_frames}, but this model's time mode is '{manifest.time_mode}'",
                fix="give the number of frames of the clip" if total_frames is None else "leave total_frames out",
            )
        if ingest not in get_args(Ingest):
            raise StreamError(f"ingest is {ingest!r}", expected=f"one of {', '.join(get_args(Ingest))}")
        if max_waiting < 1:
            raise StreamError(f"max_waiting is {max_waiting}", expected="at least 1: how many frames may wait")
        self._bundle = bundle
        self._prompt, self._tokenizer = manifest.prompt, bundle.tokenizer
        self._total_frames, self._ingest, self._max_waiting = total_frames, ingest, max_waiting
        self.clock, self._num_retained = resolve_clock(manifest, clock, retain)
        self.vision = VisionEncoder(bundle.sessions, time_divisor=total_frames or 1, retain=self._num_retained)
        self.context = Context(bundle)
        self.language = self.context.language
        self._images = ImageEncoder(bundle.sessions, manifest)
        self._frames = FrameTaker(bundle.sessions["trunk"].memory, size=manifest.shape.image_size)

    @staticmethod
    def open(path: str | Path, bundle: Bundle | None = None) -> PVCStream:
        """Continue a stream that `save` wrote, with its clock and everything that waits.

        What it says next is what it would have said. `bundle` is the opened bundle it ran on; by default the folder
        that the file names is opened. Raises StreamError for a file that cannot be read or belongs to another bundle,
        and what open_bundle raises.
        """
        bundle, snapshot, caches = read_saved(Path(path), bundle)
        stream = PVCStream(bundle, **snapshot.options)
        stream.vision.ring.restore(caches["vision"], snapshot.num_frames)
        stream.vision.retained.restore(caches["retained"])
        stream.language.cache.restore(caches["language"], snapshot.language_rows)
        stream._stand_at(snapshot)
        return stream

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
        return len(self.context.waiting)

    @property
    def context_rows(self) -> int:
        """LLM rows in use, of the bundle's `context`; those of frames that wait are counted."""
        return self.context.num_rows

    def push(self, frame_bgr: Any) -> PushTiming:
        """Let the model see the next frame: (H, W, 3) uint8 BGR of any size, a numpy array or what speaks DLPack.
        One of the model's size that lies on the GPU stays there (device_frames.py).

        With clock 'reanchor', a frame whose time would lie beyond training first starts the stream anew: the last
        `retain` frames are replayed as its first, and all else is forgotten, kept questions and answers included.
        Raises FrameError for anything else, and StreamFull when the frame's tokens do not fit in the context. Whatever
        is raised, the frame is not part of the stream. Where the LLM fails as a stream starts anew, the rest of that is
        done: the replayed frames wait, and the next frame or question takes them in.
        """
        if self.num_frames == self._total_frames:
            raise StreamError(
                f"all {self._total_frames} frames of this stream were pushed",
                fix="reset the stream, or make a new one with a larger total_frames",
            )
        started = time.perf_counter()
        frame = self._frames.take(frame_bgr)
        resized = time.perf_counter()
        replay = self.vision.encode_anew(frame) if self._is_due() else None
        encoded = replay.newest if replay else self.vision.encode(frame)
        seen = time.perf_counter()
        if replay:
            told = self._start_anew(replay)
        else:
            told = self.context.frame(encoded.frame_embeds, index=self.num_context_frames + 1)
        self._take(told, encoded)
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
                   many as the model was made for; or what encode_image returned, for an image that is asked about more
                   than once. They come before the question, or where it says <image>
        keep=False rolls question and answer back afterwards: the context's length is set back, and no cache is copied.
        keep=True  leaves them in the context, so that later questions can refer to them, until the stream re-anchors.
        Raises StreamFull before anything is run if question and answer might not fit, FrameError for what is no image,
        and StreamError for a question that holds a special token of the conversation, or not one <image> per image.
        """
        if max_new_tokens < 1:
            raise StreamError(f"max_new_tokens is {max_new_tokens}", expected="at least 1: an answer has a token")
        started = time.perf_counter()
        rows = self._question_rows(question, images, max_tiles=max_tiles, num_reserved=max_new_tokens)
        encoded = time.perf_counter() if images else started
        with self.context.undone_on_error() as mark:
            logits = self.language.logits(self.context.append(rows))
            prefilled = time.perf_counter()
            tokens, finished = self._decode(logits, max_new_tokens)
            if keep:
                self.context.next_turn()
            else:
                self.context.rewind(mark)
        return Answer(
            text=self._tokenizer.decode(tokens),
            token_ids=tuple(tokens),
            finished=finished,
            vision_ms=1e3 * (encoded - started),
            prefill_ms=1e3 * (prefilled - encoded),
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
        for token in token_ids:
            if not (isinstance(token, int | np.integer) and 0 <= token < vocab_size):
                raise StreamError(f"{token!r} is no token id", expected=f"integers from 0 to {vocab_size - 1}")
        rows = self._question_rows(question, images, max_tiles=max_tiles, num_reserved=len(token_ids))
        with self.context.undone_on_error() as mark:
            logits = [self.language.logits(self.context.append(rows))]
            logits += [self.language.logits(self.context.say(token)) for token in token_ids]
            self.context.rewind(mark)
        return np.stack(logits)

    def encode_image(self, image_bgr: Array, *, max_tiles: int | None = None) -> Array:
        """An image as the LLM sees it, (rows, E): a static video, which leaves this stream's frames alone.

        What it returns can take the image's place in `ask` and `score`, of any stream of this bundle. Tokens are
        ordered (tile, repeat, token). Raises FrameError for anything but (H, W, 3) uint8 BGR.
        """
        return self._images.encode(image_bgr, max_tiles=max_tiles)

    def rows_needed(self, num_frames: int, *, question: str, max_new_tokens: int) -> int:
        """Most context rows that a fresh stream of this clock uses for so many frames, a question, and its answer."""
        manifest = self._bundle.manifest
        if self.clock == "reanchor":
            num_frames = min(num_frames, manifest.trained_frames)
        pending, rows = self._prompt.start, max_new_tokens
        for index in range(1, num_frames + 1):
            rows += len(self._tokenizer.encode(pending + self._prompt.before_frame(index)))
            rows += manifest.shape.num_frame_tokens
            pending = self._prompt.frame_end()
        return rows + len(self._tokenizer.encode(pending + question + self._prompt.ask_suffix))

    def save(self, path: str | Path) -> None:
        """Write this stream to a file, from which `open` continues it, after any number of restarts.

        An older file of that name is replaced in one step. Raises BackendUnavailable if it cannot be written; the
        stream itself goes on either way.
        """
        vision, language = self.vision, self.language
        caches = {"vision": vision.ring.dump(), "retained": vision.retained.dump(), "language": language.cache.dump()}
        write_saved(Path(path), self._bundle, self._standing(), caches)

    def fork(self) -> PVCStream:
        """A second stream that starts where this one stands, its clock, anchor and all that waits included. From there
        on each goes its own way.

        The bundle and its sessions stay shared, as by any two streams: one call at a time. The fork has caches of its
        own, which cost the memory of a new stream, and it copies what is in use: min(num_context_frames, window) rows
        of each ring, the retained frames, and the LLM's rows. On a GPU none of it comes to the host. Raises
        MemoryError, or BackendUnavailable for a GPU's memory; whatever is raised, this stream is as it was.
        """
        snapshot = self._standing()
        fork = PVCStream(self._bundle, **snapshot.options)
        fork.vision.copy_from(self.vision)
        fork.language.cache.copy_from(self.language.cache)
        fork._stand_at(snapshot)
        return fork

    def reset(self) -> None:
        """Forget everything: frames, questions, answers. An interrupt waits until all of it is forgotten."""

        def forget() -> None:
            self.vision.reset()
            self.context.restart()

        _run_whole(forget)

    def _decode(self, logits: Array, limit: int) -> tuple[list[int], bool]:
        """The likeliest tokens until a stop token (True) or the limit (False), each fed back to the LLM.

        `logits` (V,) are those of the first token.
        """
        tokens: list[int] = []
        while (token := int(logits.argmax())) not in self._tokenizer.stop_ids:
            tokens.append(token)
            hidden = self.context.say(token)
            if len(tokens) == limit:
                return tokens, False
            logits = self.language.logits(hidden)
        return tokens, True

    def _question_rows(
        self, question: str, images: Sequence[Array], *, max_tiles: int | None, num_reserved: int
    ) -> Array:
        """Embeddings (L, E) of what follows the frames, up to where the answer starts."""
        self._tokenizer.refuse_special_tokens(question)
        spec, embed = self._prompt, self.language.embed
        pieces = spec.around_images(question, len(images))
        starts = [self.context.pending, *(spec.image_end for _ in images)]
        ends = [*(spec.image_start for _ in images), spec.ask_suffix]
        ids = [self._tokenizer.encode(a + piece + b) for a, piece, b in zip(starts, pieces, ends, strict=True)]
        num_rows = sum(self._images.num_rows(image, max_tiles=max_tiles) for image in images) + sum(map(len, ids))
        self.context.reserve(num_rows + num_reserved)
        rows = [embed(ids[0])]
        for image, after in zip(images, ids[1:], strict=True):
            rows += [self._images.encode(image, max_tiles=max_tiles), embed(after)]
        return np.concatenate(rows)

    def _is_due(self) -> bool:
        """Whether the next frame's time would lie beyond training, where that starts the stream anew."""
        return self.clock == "reanchor" and self.num_context_frames >= self._bundle.manifest.trained_frames

    def _start_anew(self, replay: Replay) -> FrameRows:
        """Forget all but the replayed frames, which then wait for the LLM. Returns the new frame, which follows them.

        What can fail comes first; an interrupt of the rest waits until it is done.
        """
        frames = self.context.first_frames((*replay.frame_embeds, replay.newest.frame_embeds))

        def adopt() -> None:
            self.vision.anchor = replay.anchor
            self.context.restart(waiting=tuple(frames[:-1]))

        _run_whole(adopt)
        return frames[-1]

    def _take(self, frame: FrameRows, encoded: EncodedFrame) -> None:
        """Make a frame part of the conversation, then of the ring, whose count is what makes it part of the stream."""
        is_lazy, num_frames = self._ingest == "lazy", self.num_frames
        # An eager stream has frames that wait only after it started anew. One by one, as when they were new: the LLM's
        # rows are then the same to the last bit.
        batch = self._max_waiting if is_lazy else 1
        while self.num_waiting >= batch:
            self.context.take_in(batch)
        with self.context.undone_on_error(unless=lambda: self.num_frames > num_frames):
            self.context.add(frame, wait=is_lazy)
            self.vision.commit(encoded)

    def _standing(self) -> Snapshot:
        anchor = self.vision.anchor
        return Snapshot(
            options=StreamOptions(
                total_frames=self._total_frames,
                ingest=self._ingest,
                max_waiting=self._max_waiting,
                clock=self.clock,
                retain=self._num_retained or None,
            ),
            num_frames=anchor.ring.num_frames,
            language_rows=self.language.cache.length,
            first_frame=anchor.first_frame,
            num_anchors=anchor.index,
            waiting=self.context.waiting,
            pending=self.context.pending,
        )

    def _stand_at(self, snapshot: Snapshot) -> None:
        """Where the caches are filled already, and the options are the snapshot's: stand where it was taken."""
        self.vision.anchor = replace(self.vision.anchor, first_frame=snapshot.first_frame, index=snapshot.num_anchors)
        self.context.waiting, self.context.pending = snapshot.waiting, snapshot.pending


def _run_whole(step: Callable[[], None]) -> None:
    """Run what must not be left half done, and may be run twice: after an interrupt it runs again, to its end."""
    try:
        step()
    except BaseException:
        step()
        raise
