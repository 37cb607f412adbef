"""PVCStream: push frames, ask questions. One camera's view of a bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bundle import Bundle, open_bundle
from .errors import StreamError
from .language import LanguageModel
from .memory import Array
from .preprocess import to_model_frame
from .saved import bundle_id, read_saved, write_saved
from .vision import EncodedFrame, VisionEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTiming:
    """Milliseconds of one pushed frame: resize, vision graphs, LLM ingest."""

    preprocess_ms: float
    vision_ms: float
    ingest_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model said, and what it cost. `finished` is false when max_new_tokens cut it short."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    prefill_ms: float
    decode_ms: float


class PVCStream:
    """A stream of frames with its own temporal and LLM caches; sessions are shared through the bundle.

    State changes only after everything of a call succeeded: a frame that fails leaves the stream as it was.
    `vision` and `language` are its two halves, each with its cache.
    """

    def __init__(self, bundle: Bundle, *, total_frames: int | None = None) -> None:
        """total_frames is needed by models whose time is `fixed` (t / T) and refused for all others.

        Raises StreamError when the two do not fit.
        """
        manifest = bundle.manifest
        if total_frames is not None and total_frames < 1:
            raise StreamError(f"total_frames is {total_frames}, expected at least 1: the number of frames of the clip")
        if (manifest.time_mode == "fixed") != (total_frames is not None):
            raise StreamError(
                f"this model's time mode is '{manifest.time_mode}', so total_frames must be "
                f"{'given' if total_frames is None else 'left out'}, but it is {total_frames}"
            )
        self._bundle = bundle
        self._spec, self._tokenizer = manifest.prompt, bundle.tokenizer
        self._total_frames = total_frames
        self._image_size = manifest.shape.image_size
        self._num_frame_tokens = manifest.shape.num_frame_tokens
        self.vision = VisionEncoder(bundle.sessions, time_divisor=total_frames or 1)
        self.language = LanguageModel(bundle.sessions)
        self._pending = self._spec.start  # text that waits for the next special token

    @property
    def num_frames(self) -> int:
        return self.vision.num_frames

    @property
    def context_rows(self) -> int:
        """LLM rows in use, of the bundle's `context`."""
        return self.language.cache.length

    def push(self, frame_bgr: Array) -> PushTiming:
        """Let the model see the next frame: (H, W, 3) uint8 BGR of any size.

        Raises FrameError for anything else, and StreamFull when the frame's tokens do not fit in the context.
        """
        if self.num_frames == self._total_frames:
            raise StreamError(
                f"all {self._total_frames} frames of this stream were pushed; reset it, or make a new one"
            )
        started = time.perf_counter()
        frame = to_model_frame(frame_bgr, size=self._image_size)
        resized = time.perf_counter()
        encoded = self.vision.encode(frame)
        seen = time.perf_counter()
        ids = self._tokenizer.encode(self._pending + self._spec.before_frame(self.num_frames + 1))
        self._ingest(np.concatenate([self.language.embed(ids), encoded.frame_embeds]), encoded)
        done = time.perf_counter()
        return PushTiming(
            preprocess_ms=1e3 * (resized - started), vision_ms=1e3 * (seen - resized), ingest_ms=1e3 * (done - seen)
        )

    def ask(self, question: str, *, max_new_tokens: int = 64, keep: bool = False) -> Answer:
        """Ask about everything pushed so far; the likeliest token is taken at every step.

        keep=False rolls question and answer back afterwards: the context's length is set back, and no cache is copied.
        keep=True leaves them in the context, so that later questions can refer to them.
        Raises StreamFull before anything is run if question and answer might not fit, and StreamError for a question
        that holds a special token of the conversation.
        """
        self._tokenizer.refuse_special_tokens(question)
        language, mark, pending = self.language, self.context_rows, self._pending
        ids = self._tokenizer.encode(self._pending + question + self._spec.ask_suffix)
        language.cache.reserve(len(ids) + max_new_tokens)
        started = time.perf_counter()
        tokens: list[int] = []
        finished = False
        try:
            hidden = language.append(language.embed(ids))
            prefilled = time.perf_counter()
            while len(tokens) < max_new_tokens:
                token = int(language.logits(hidden).argmax())
                if finished := token == self._tokenizer.stop_id:
                    break
                tokens.append(token)
                hidden = language.append(language.embed([token]))
            if keep:
                self._pending = self._spec.next_turn
            else:
                language.cache.truncate(mark)
        except BaseException:
            language.cache.truncate(mark)
            self._pending = pending
            raise
        return Answer(
            text=self._tokenizer.decode(tokens),
            token_ids=tuple(tokens),
            finished=finished,
            prefill_ms=1e3 * (prefilled - started),
            decode_ms=1e3 * (time.perf_counter() - prefilled),
        )

    def rows_needed(self, num_frames: int, *, question: str, max_new_tokens: int) -> int:
        """Context rows that a fresh stream would use for so many frames, a question, and its answer."""
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
        facts = {
            "bundle_id": bundle_id(self._bundle),
            "bundle": str(self._bundle.folder.resolve()),
            "num_frames": self.num_frames,
            "context_rows": self.context_rows,
            "pending": self._pending,
            "total_frames": self._total_frames,
        }
        vision = {f"vision/{name}": array for name, array in self.vision.ring.dump().items()}
        language = {f"language/{name}": array for name, array in self.language.cache.dump().items()}
        write_saved(Path(path), facts, vision | language)

    def reset(self) -> None:
        """Forget everything: frames, questions, answers."""
        self.vision.reset()
        self.language.cache.truncate(0)
        self._pending = self._spec.start

    def _ingest(self, embeds: Array, encoded: EncodedFrame) -> None:
        """Rows and text into the LLM's cache, then the frame into the ring: its count is what makes a frame seen.

        An interrupt may strike between any two statements, so the rest goes back unless that count has moved.
        """
        mark, pending, num_frames = self.context_rows, self._pending, self.num_frames
        try:
            self.language.append(embeds)
            self._pending = self._spec.behind_frame()
            self.vision.commit(encoded)
        except BaseException:
            if self.num_frames == num_frames:
                self.language.cache.truncate(mark)
                self._pending = pending
            raise


def open_stream(path: str | Path, bundle: Bundle | None = None) -> PVCStream:
    """Continue a saved stream: what it says next is what it would have said.

    `bundle` is the opened bundle it ran on; by default the folder that the file names is opened. Raises StreamError
    for a file that cannot be read or belongs to another bundle, and what open_bundle raises.
    """
    path = Path(path)
    facts, caches = read_saved(path)
    try:
        bundle = bundle or open_bundle(facts["bundle"])
        if facts["bundle_id"] != bundle_id(bundle):
            raise StreamError(
                f"{path} was saved with another bundle than {bundle.folder}: its caches mean nothing here. Open it "
                f"with the bundle that was at {facts['bundle']}, or start a new stream"
            )
        stream = PVCStream(bundle, total_frames=facts["total_frames"])
        parts: dict[str, dict[str, Array]] = {"vision": {}, "language": {}}
        for name, bits in caches.items():
            part, _, cache = name.partition("/")
            parts[part][cache] = bits
        stream.vision.ring.restore(parts["vision"], int(facts["num_frames"]))
        stream.language.cache.restore(parts["language"], int(facts["context_rows"]))
        stream._pending = str(facts["pending"])
    except (KeyError, TypeError) as error:
        raise StreamError(
            f"{path} lacks or garbles a field of a saved stream: {error!r}. It is damaged: open an older one, or start "
            "a new stream"
        ) from error
    return stream
