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
        reserve: int = 0,
    ) -> None:
        """total_frames is needed by models whose time is `fixed` (t / T) and refused for all others.

        clock    what happens at the frame count that the model was trained on, and where the context is full; None is
                 DEFAULT_CLOCK where it can be, and 'reanchor' for a bundle that was exported so
        retain   frames that a re-anchor replays, 1 <= retain <= window and < trained_frames; None is DEFAULT_RETAIN, or
                 as many as fit
        reserve  context rows that frames leave free, for a question and its answer; only with clock 'reanchor'
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
        """Continue a stream that `save` wrote, with its clock and everything that waits.

        What it says next is what it would have said. `bundle` is the opened bundle it ran on; by default the folder
        that the file names is opened. Raises StreamError for a file that cannot be read or belongs to another bundle,
        and what open_bundle raises.
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
        """Frames that were pushed, those that a re-anchor forgot included."""
        return self.episodes.num_frames

    @property
    def num_context_frames(self) -> int:
        """Frames since the stream began or was last re-anchored, the replayed ones included: the next frame's time."""
        return self.episodes.current.num_frames

    @property
    def num_anchors(self) -> int:
        """How many times the stream was re-anchored."""
        return self.episodes.anchor.index

    @property
    def num_waiting(self) -> int:
        """Frames that the LLM has not taken in yet."""
        return len(self.context.waiting)

    @property
    def context_rows(self) -> int:
        """LLM rows in use, of the bundle's `context`; those of frames that wait are counted, those of a question that
        is being answered are not."""
        return self.context.num_rows

    @property
    def newest(self) -> Array | None:
        """The last frame as the LLM sees it, (M, E); None before the first one, and of a stream that was opened."""
        return self.episodes.current.newest

    def frames_left(self, most: int = 1) -> int:
        """Frames that can be pushed before the stream starts anew, at most `most`; `most` where it never does."""
        return self.episodes.frames_left(most)

    @property
    def next_frame_cuts(self) -> bool:
        """Whether the next frame would cut the answer that is being decoded: the stream has re-anchored since it began,
        and would do so again."""
        return self.episodes.next_cuts_an_answer

    @property
    def reserve(self) -> int:
        """Context rows that frames leave free where the clock is 'reanchor'. Setting it raises StreamError where the
        replayed frames, one more, and so many rows do not fit."""
        return self.episodes.reserve

    @reserve.setter
    def reserve(self, num_rows: int) -> None:
        self.episodes.fitting(num_rows, self.notes, least=self.episodes.num_retained)
        self.episodes.reserve = num_rows

    @property
    def notes(self) -> str:
        """What `remember` was told."""
        return self.episodes.notes

    def remember(self, notes: str) -> None:
        """Text that comes before the first frame from the next anchor or reset on; of a stream that is empty, at once.
        It is all that a re-anchor keeps of what was said. An empty text forgets.

        Raises StreamError for a special token of the conversation, and where the notes and the frames that are replayed
        do not fit in the context.
        """
        self._tokenizer.refuse_special_tokens(notes)
        episodes, notes = self.episodes, notes and f"{notes}\n"
        episodes.fitting(episodes.reserve, notes, least=episodes.num_retained)
        episodes.notes = notes
        if self.num_frames == self.context_rows == 0 and self.context.branch is None:
            self.context.restart(notes)

    def push(self, frame_bgr: Any) -> PushTiming:
        """Let the model see the next frame: (H, W, 3) uint8 BGR of any size, a numpy array or what speaks DLPack.
        One of the model's size that lies on the GPU stays there (device_frames.py).

        With clock 'reanchor', a frame whose time would lie beyond training, or for which the context has no room, first
        starts the stream anew: the last `retain` frames are replayed as its first, and all else is forgotten, kept
        questions and answers included. That is prepared ahead, with the frames before it. While a question is answered
        (`begin`), a frame waits for the LLM.
        Raises FrameError for anything else, and StreamFull when the frame's tokens do not fit in the context. Whatever
        is raised, the frame is not part of the stream, and the stream is as it was.
        """
        if self.num_frames == self._total_frames:
            raise StreamError(
                f"all {self._total_frames} frames of this stream were pushed",
                fix="reset the stream, or make a new one with a larger total_frames",
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
        """Ask about everything pushed so far; by default the likeliest token is taken at every step.

        images     (H, W, 3) uint8 BGR of any size, each cut into at most max_tiles tiles and a thumbnail, by default as
                   many as the model was made for; or what encode_image returned, for an image that is asked about more
                   than once. They come before the question, or where it says <image>
        keep=False rolls question and answer back afterwards: the context's length is set back, and no cache is copied.
        keep=True  leaves them in the context, so that later questions can refer to them, until the stream re-anchors.
        earlier    turns that come behind the frames, as if they had been kept; stop: texts before which the answer ends
        Raises StreamFull before anything is run if question and answer might not fit, FrameError for what is no image,
        and StreamError for a question that holds a special token of the conversation, or not one <image> per image.
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
        """As `ask`, an answer that is decoded a token a step, and frames may be pushed between two steps.

        It is about the frames until now. What is pushed meanwhile, and asked later, is as if the question had come and
        gone before. Until it is done or cancelled, `ask`, `begin`, `score`, `save` and `fork` raise StreamError.
        """
        with self._undone_on_error():
            return self._begin(question, images, max_tiles, max_new_tokens, keep, earlier, sampling, stop)

    def cancel(self) -> None:
        """Cut the answer that is being decoded, if there is one. Frames that wait for it stay."""
        self.context.end_branch(keep=False)

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
        with self._undone_on_error():
            rows = self._question_rows(question, images, (), max_tiles, len(token_ids))
            self.episodes.current.take_in_all()
            mark = self.context.mark()
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
        return self.episodes.rows_needed(num_frames, question=question, max_new_tokens=max_new_tokens)

    def save(self, path: str | Path) -> None:
        """Write this stream to a file, from which `open` continues it, after any number of restarts.

        An older file of that name is replaced in one step. Raises BackendUnavailable if it cannot be written; the
        stream itself goes on either way.
        """
        self._require_no_answer()
        caches = {
            "vision": self.vision.ring.dump(),
            "retained": self.episodes.retained.dump(),
            "language": self.language.cache.dump(),
        }
        write_saved(Path(path), self._bundle, self._standing(), caches)

    def fork(self) -> PVCStream:
        """A second stream that starts where this one stands, its clock, anchor and all that waits included. From there
        on each goes its own way.

        The bundle and its sessions stay shared, as by any two streams: one call at a time. The fork has caches of its
        own, which cost the memory of a new stream, and it copies what is in use: min(num_context_frames, window) rows
        of each ring, the retained frames, and the LLM's rows. On a GPU none of it comes to the host. Raises
        MemoryError, or BackendUnavailable for a GPU's memory; whatever is raised, this stream is as it was.
        """
        self._require_no_answer()
        snapshot = self._standing()
        fork = PVCStream(self._bundle, **snapshot.options)
        fork.episodes.copy_from(self.episodes)
        fork._stand_at(snapshot)
        return fork

    def reset(self) -> None:
        """Forget everything: frames, questions, answers; not the notes. An answer that is being decoded is cut. An
        interrupt waits until all of it is forgotten."""
        self.episodes.reset()

    def _begin(
        self, question: str, images: Sequence[Array], max_tiles: int | None, max_new_tokens: int, keep: bool,
        earlier: Sequence[Turn], sampling: Sampling, stop: Sequence[str],
    ) -> Answering:  # fmt: skip
        """The caller undoes what an error leaves."""
        if max_new_tokens < 1:
            raise StreamError(f"max_new_tokens is {max_new_tokens}", expected="at least 1: an answer has a token")
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
        """For a call that must find no answer that is being decoded."""
        self._require_no_answer()
        return self.context.undone_on_error()

    def _require_no_answer(self) -> None:
        if self.context.branch is not None:
            raise StreamError(
                "a question is being answered",
                expected="one answer at a time of a stream",
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
        """Where the caches are filled already, and the options are the snapshot's: stand where it was taken."""
        context = self.context
        self.episodes.anchor = Anchor(
            episode=self.episodes.current, first_frame=snapshot.first_frame, index=snapshot.num_anchors
        )
        context.waiting, context.pending = snapshot.waiting, snapshot.pending
        self.episodes.notes = snapshot.notes
