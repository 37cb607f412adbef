"""PVCStream: push frames, ask questions. One camera's view of a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .answer import Answer, PushTiming
from .answering import Answering
from .bundle import Bundle
from .clock import Clock, resolve_clock
from .context import Context, UndoneOnError
from .device_frames import FrameTaker
from .episodes import Anchor, Episodes
from .errors import StreamError
from .images import ImageEncoder
from .ingest import Ingest, require_ingest
from .language import LanguageModel
from .memory import Array
from .prompt import Turn
from .question import question_rows
from .sampling import GREEDY, Sampling
from .saved import Snapshot, StreamOptions, read_saved, write_saved
from .vision import VisionEncoder


class PVCStream:
    """A stream of frames with its own temporal and LLM caches; sessions are shared through the bundle.

    State changes only after everything in a call succeeded: a frame that fails leaves the stream unchanged.

    vision    the frames it remembers
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
        reserve: int = 0,
    ) -> None:
        """total_frames is required by models whose time is `fixed` (t / T) and refused for all others.

        clock    what happens at the frame count the model was trained on, and when the context is full. None selects
                 DEFAULT_CLOCK if the model supports it, and 'reanchor' for a bundle exported that way
        retain   frames that a re-anchor replays, 1 <= retain <= window and < trained_frames; None is DEFAULT_RETAIN, or
                 as many as fit
        reserve  context rows that frames leave free for a question and its answer; only with clock 'reanchor'
        Raises StreamError if these do not fit the model, or if `ingest` or `max_waiting` is invalid.
        """
        manifest = bundle.manifest
        if total_frames is not None and total_frames < 1:
            raise StreamError(
                f"total_frames is {total_frames}", expected="at least 1: the number of frames of the clip"
            )
        if (manifest.time_mode == "fixed") != (total_frames is not None):
            raise StreamError(
                f"total_frames is {total_frames}, but this model's time mode is '{manifest.time_mode}'",
                fix="pass total_frames, the clip's number of frames"
                if total_frames is None
                else "leave total_frames out",
            )
        require_ingest(ingest, max_waiting)
        self._bundle = bundle
        self._tokenizer = bundle.tokenizer
        self._total_frames, self._ingest, self._max_waiting = total_frames, ingest, max_waiting
        self.clock, num_retained = resolve_clock(manifest, clock, retain)
        self.episodes = Episodes(
            bundle, clock=self.clock, retain=num_retained, reserve=reserve, least=retain,
            time_divisor=total_frames or 1, ingest=ingest, max_waiting=max_waiting,
        )  # fmt: skip
        self._images = ImageEncoder(bundle.sessions, manifest)
        self._frames = FrameTaker(bundle.sessions["trunk"].memory, size=manifest.shape.image_size)

    @staticmethod
    def open(path: str | Path, bundle: Bundle | None = None) -> PVCStream:
        """Continue a stream that `save` wrote, with its clock and everything that was waiting.

        It continues exactly as the saved stream would have. `bundle` is the opened bundle it ran on; by default the
        folder named in the file is opened. Raises StreamError for a file that cannot be read or belongs to another
        bundle, and what open_bundle raises.
        """
        bundle, snapshot, caches = read_saved(Path(path), bundle)
        stream = PVCStream(bundle, **snapshot.options)
        stream.vision.ring.restore(caches["vision"], snapshot.num_frames)
        stream.episodes.retained.restore(caches["retained"])
        stream.language.cache.restore(caches["language"], snapshot.language_rows)
        stream._stand_at(snapshot)
        return stream

    @property
    def vision(self) -> VisionEncoder:
        return self.episodes.current.vision

    @property
    def context(self) -> Context:
        return self.episodes.current.context

    @property
    def language(self) -> LanguageModel:
        return self.context.language

    @property
    def num_frames(self) -> int:
        """Frames pushed so far, including those that a re-anchor dropped."""
        return self.episodes.num_frames

    @property
    def num_context_frames(self) -> int:
        """Frames since the stream began or last re-anchored, including replayed ones: the next frame's time."""
        return self.episodes.current.num_frames

    @property
    def num_anchors(self) -> int:
        """Number of times the stream re-anchored."""
        return self.episodes.anchor.index

    @property
    def num_waiting(self) -> int:
        """Frames that the LLM has not read yet."""
        return len(self.context.waiting)

    @property
    def context_rows(self) -> int:
        """LLM rows in use, out of the bundle's `context`. Includes waiting frames, but not a question that is being
        answered."""
        return self.context.num_rows

    @property
    def newest(self) -> Array | None:
        """The last frame as the LLM sees it, (M, E); None before the first frame and after `open`."""
        return self.episodes.current.newest

    def frames_left(self, most: int = 1) -> int:
        """Frames that can be pushed before the stream re-anchors, at most `most`; `most` if it never does."""
        return self.episodes.frames_left(most)

    @property
    def next_frame_cuts(self) -> bool:
        """Whether the next frame would cut the answer being decoded: the stream has re-anchored since it began, and
        would re-anchor again."""
        return self.episodes.next_cuts_an_answer

    @property
    def reserve(self) -> int:
        """Context rows that frames leave free with clock 'reanchor'. Setting it raises StreamError if these rows, the
        replayed frames and one more frame do not fit."""
        return self.episodes.reserve

    @reserve.setter
    def reserve(self, num_rows: int) -> None:
        self.episodes.fitting(num_rows, self.notes, least=self.episodes.num_retained)
        self.episodes.reserve = num_rows

    @property
    def notes(self) -> str:
        """The text given to `remember`."""
        return self.episodes.notes

    def remember(self, notes: str) -> None:
        """Set text that precedes the first frame, from the next anchor or reset on; immediately if the stream is empty.
        It is the only text that survives a re-anchor. An empty text removes it.

        Raises StreamError for a special token of the conversation, and if the notes and the replayed frames do not fit
        in the context.
        """
        self._tokenizer.refuse_special_tokens(notes)
        episodes, notes = self.episodes, notes and f"{notes}\n"
        episodes.fitting(episodes.reserve, notes, least=episodes.num_retained)
        episodes.notes = notes
        if self.num_frames == self.context_rows == 0 and self.context.branch is None:
            self.context.restart(notes)

    def push(self, frame_bgr: Any) -> PushTiming:
        """Push the next frame: (H, W, 3) uint8 BGR of any size, a numpy array or any object that supports DLPack. A
        frame of the model's size that is on the GPU stays there (device_frames.py).

        With clock 'reanchor', a frame whose time would exceed training, or that does not fit in the context, first
        re-anchors the stream: the last `retain` frames are replayed as its first, and everything else is dropped,
        including kept questions and answers. The replay is prepared ahead, along with the frames before it. While a
        question is answered (`begin`), a frame waits for the LLM.
        Raises FrameError for anything else, and StreamFull if the frame's tokens do not fit in the context. After any
        exception the frame is not part of the stream, and the stream is unchanged.
        """
        if self.num_frames == self._total_frames:
            raise StreamError(
                f"all {self._total_frames} frames of this stream have been pushed",
                fix="reset the stream, or create one with a larger total_frames",
            )
        started = time.perf_counter()
        frame = self._frames.take(frame_bgr)
        resized = time.perf_counter()
        features = self.vision.trunk(frame)
        seen = self.episodes.push(features)
        taken = time.perf_counter()
        self.episodes.prepare()
        return PushTiming(
            preprocess_ms=1e3 * (resized - started),
            vision_ms=1e3 * (seen - resized),
            ingest_ms=1e3 * (taken - seen),
            prepare_ms=1e3 * (time.perf_counter() - taken),
        )

    def ask(
        self,
        question: str,
        *,
        images: Sequence[Array] = (),
        max_tiles: int | None = None,
        max_new_tokens: int = 64,
        keep: bool = False,
        earlier: Sequence[Turn] = (),
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> Answer:
        """Ask about everything pushed so far. By default the likeliest token is chosen at every step.

        images     (H, W, 3) uint8 BGR of any size, each cut into at most max_tiles tiles and a thumbnail (by default as
                   many as the model was made for); or results of encode_image, for an image used in several questions.
                   They precede the question, or replace <image> in it
        keep=False removes question and answer afterwards: the context's length is set back, and no cache is copied.
        keep=True  leaves them in the context, so that later questions can refer to them, until the stream re-anchors.
        earlier    turns placed after the frames, as if they had been kept. stop: texts that end the answer
        Raises StreamFull before anything runs if question and answer might not fit, FrameError for an invalid image,
        and StreamError for a question that contains a special token of the conversation, or not one <image> per image.
        """
        with self._undone_on_error():
            answering = self._begin(question, images, max_tiles, max_new_tokens, keep, earlier, sampling, stop)
            while not answering.step():
                pass
        assert answering.answer is not None
        return answering.answer

    def begin(
        self,
        question: str,
        *,
        images: Sequence[Array] = (),
        max_tiles: int | None = None,
        max_new_tokens: int = 64,
        keep: bool = False,
        earlier: Sequence[Turn] = (),
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> Answering:
        """Like `ask`, but the answer is decoded token by token, and frames may be pushed between two steps.

        It covers the frames pushed so far. Frames pushed meanwhile, and later questions, see the stream as if this
        question had ended before them. Until it is done or cancelled, `ask`, `begin`, `score`, `save` and `fork` raise
        StreamError.
        """
        with self._undone_on_error():
            return self._begin(question, images, max_tiles, max_new_tokens, keep, earlier, sampling, stop)

    def cancel(self) -> None:
        """Cut the answer being decoded, if there is one. Frames waiting for it remain."""
        self.context.end_branch(keep=False)

    def score(
        self, question: str, token_ids: Sequence[int], *, images: Sequence[Array] = (), max_tiles: int | None = None
    ) -> Array:
        """Logits at each step of a given answer (teacher forcing), rolled back afterwards.

        Returns float32 logits (len(token_ids) + 1, V): row i follows the first i tokens. Raises what `ask` raises, and
        StreamError for an invalid token id.
        """
        vocab_size = self._bundle.manifest.shape.vocab_size
        for token in token_ids:
            if not (isinstance(token, int | np.integer) and 0 <= token < vocab_size):
                raise StreamError(f"{token!r} is not a token id", expected=f"integers from 0 to {vocab_size - 1}")
        with self._undone_on_error():
            rows = self._question_rows(question, images, (), max_tiles, len(token_ids))
            self.episodes.current.take_in_all()
            mark = self.context.mark()
            logits = [self.language.logits(self.context.append(rows))]
            logits += [self.language.logits(self.context.say(token)) for token in token_ids]
            self.context.rewind(mark)
        return np.stack(logits)

    def encode_image(self, image_bgr: Array, *, max_tiles: int | None = None) -> Array:
        """An image as the LLM sees it, (rows, E): a static video, encoded apart from this stream's frames.

        The result can replace the image in `ask` and `score`, in any stream of this bundle. Tokens are ordered (tile,
        repeat, token). Raises FrameError for anything but (H, W, 3) uint8 BGR.
        """
        return self._images.encode(image_bgr, max_tiles=max_tiles)

    def rows_needed(self, num_frames: int, *, question: str, max_new_tokens: int) -> int:
        """Most context rows that a new stream with this clock uses for num_frames frames, a question and its answer."""
        return self.episodes.rows_needed(num_frames, question=question, max_new_tokens=max_new_tokens)

    def save(self, path: str | Path) -> None:
        """Write this stream to a file, from which `open` continues it, after any number of restarts.

        An existing file of that name is replaced atomically. Raises BackendUnavailable if it cannot be written; the
        stream itself continues either way.
        """
        self._require_no_answer()
        caches = {
            "vision": self.vision.ring.dump(),
            "retained": self.episodes.retained.dump(),
            "language": self.language.cache.dump(),
        }
        write_saved(Path(path), self._bundle, self._standing(), caches)

    def fork(self) -> PVCStream:
        """A second stream that starts in the state of this one, including clock, anchor and everything that waits. From
        there on the two are independent.

        They share the bundle and its sessions, as any two streams do: one call at a time. The fork has its own caches,
        which take the memory of a new stream, and copies what is in use: min(num_context_frames, window) rows of each
        ring, the retained frames, and the LLM's rows. On a GPU nothing is copied to the host. Raises MemoryError, or
        BackendUnavailable for a GPU's memory; after any exception this stream is unchanged.
        """
        self._require_no_answer()
        snapshot = self._standing()
        fork = PVCStream(self._bundle, **snapshot.options)
        fork.episodes.copy_from(self.episodes)
        fork._stand_at(snapshot)
        return fork

    def reset(self) -> None:
        """Drop all frames, questions and answers, but keep the notes. Cuts an answer being decoded. An interrupt waits
        until this is complete."""
        self.episodes.reset()

    def _begin(
        self, question: str, images: Sequence[Array], max_tiles: int | None, max_new_tokens: int, keep: bool,
        earlier: Sequence[Turn], sampling: Sampling, stop: Sequence[str],
    ) -> Answering:  # fmt: skip
        """The caller undoes the changes after an error."""
        if max_new_tokens < 1:
            raise StreamError(f"max_new_tokens is {max_new_tokens}", expected="at least 1")
        started = time.perf_counter()
        rows = self._question_rows(question, images, earlier, max_tiles, max_new_tokens)
        encoded = time.perf_counter() if images or any(turn.images for turn in earlier) else started
        self.episodes.current.take_in_all()
        return Answering(
            self._bundle, self.context, rows, max_new_tokens=max_new_tokens, keep=keep, num_frames=self.num_frames,
            vision_ms=1e3 * (encoded - started), since=encoded, sampling=sampling, stop=stop,
        )  # fmt: skip

    def _question_rows(
        self, question: str, images: Sequence[Array], earlier: Sequence[Turn], max_tiles: int | None, num_reserved: int
    ) -> Array:
        return question_rows(
            self._bundle, self.context, self._images, question, images, earlier, max_tiles, num_reserved
        )

    def _undone_on_error(self) -> UndoneOnError:
        """For a call that requires that no answer is being decoded."""
        self._require_no_answer()
        return self.context.undone_on_error()

    def _require_no_answer(self) -> None:
        if self.context.branch is not None:
            raise StreamError(
                "a question is being answered",
                expected="one answer at a time per stream",
                fix="step until it is done, or cancel it",
            )

    def _standing(self) -> Snapshot:
        episodes, anchor, context = self.episodes, self.episodes.anchor, self.context
        return Snapshot(
            options=StreamOptions(
                total_frames=self._total_frames,
                ingest=self._ingest,
                max_waiting=self._max_waiting,
                clock=self.clock,
                retain=episodes.num_retained or None,
                reserve=episodes.reserve,
            ),
            num_frames=anchor.episode.num_frames,
            language_rows=context.language.cache.length,
            first_frame=anchor.first_frame,
            num_anchors=anchor.index,
            waiting=context.waiting,
            pending=context.pending,
            notes=episodes.notes,
        )

    def _stand_at(self, snapshot: Snapshot) -> None:
        """Adopt a snapshot's position. The caches are already filled, and the options are the snapshot's."""
        context = self.context
        self.episodes.anchor = Anchor(
            episode=self.episodes.current, first_frame=snapshot.first_frame, index=snapshot.num_anchors
        )
        context.waiting, context.pending = snapshot.waiting, snapshot.pending
        self.episodes.notes = snapshot.notes
