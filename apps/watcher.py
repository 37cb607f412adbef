"""One stream that watches without an end: frames in, a question asked now and then, a new start when it is full.

Note: it is full as well when it holds as many frames as the model was trained on; of longer clips it knows nothing.
Room for the question and its answer is kept free, so that a context that fills up is asked about once more before it is
forgotten. Otherwise a small context and a rare question would give no answer at all.
A source that knows its scenes brings its own question for each scene. It is asked at the scene's last frame only, and a
context is then forgotten between two scenes, not within one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from engines import Bundle, PVCStream
from engines.errors import StreamError, StreamFull
from engines.manifest import Manifest

from .capture import Captured
from .score import Grade, grade
from .synthetic import KnownScene

NOTICE_S = 4.0  # how long an overlay shows that the stream was started again
MARGIN_ROWS = 8  # a frame's number takes more tokens as it grows


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model said about the frames up to `frame_index`. finished: false if the token limit cut it short."""

    question: str
    text: str
    frame_index: int
    time_s: float
    finished: bool
    prefill_ms: float
    decode_ms: float
    grade: Grade = field(default_factory=Grade)

    def to_json(self) -> dict[str, Any]:
        """Its fields, those of the grade among them."""
        fields = asdict(self)
        graded: dict[str, Any] = fields.pop("grade")
        return fields | graded


class Watcher:
    """A PVCStream and what it is asked. All times are the source's `time_s`."""

    def __init__(self, bundle: Bundle, question: str, *, ask_every_s: float, max_new_tokens: int) -> None:
        """`question` is for frames that bring none.

        Raises StreamError for a question that cannot be asked, StreamFull if one frame leaves no room for it.
        """
        require_endless(bundle.manifest)
        bundle.tokenizer.refuse_special_tokens(question)
        self.stream = PVCStream(bundle)
        self.question, self.context = question, bundle.manifest.limits.context
        self.last_reply: Reply | None = None
        self.num_replies = self.num_restarts = 0
        self._trained_frames = bundle.manifest.trained_frames
        self.random_weights = bundle.manifest.model.random_weights
        self._ask_every_s, self._max_new_tokens = ask_every_s, max_new_tokens
        self._ask_rows, with_frame = self._rows_needed(0), self._rows_needed(1)
        self._frame_rows = with_frame - self._ask_rows + MARGIN_ROWS
        if with_frame + MARGIN_ROWS > self.context:
            raise StreamFull(
                f"one frame, the question and {max_new_tokens} tokens of answer need {with_frame + MARGIN_ROWS} "
                "context rows",
                expected=f"{self.context} rows or fewer, as many as the bundle has",
                fix="ask shorter, lower --max-new-tokens, or export with a larger --context",
            )
        self._due_s: float | None = None
        self._num_unasked = 0
        self._num_of_scene = 0  # frames of the newest scene that are in the context
        self._notice, self._notice_until_s = "", 0.0

    @property
    def context_rows(self) -> int:
        return self.stream.context_rows

    def push(self, captured: Captured) -> None:
        """Let the model see a frame, in a new context if the old one is full, or has no room for the frame's scene."""
        scene, num_frames = captured.scene, 1
        if scene is not None and scene.is_first:
            self._num_of_scene, num_frames = 0, scene.num_frames
        if scene is not None and scene.question != self.question:
            self.question = scene.question
            self._ask_rows = self._rows_needed(0)
        if why := self._why_full(num_frames):
            self._restart(captured, why)
        try:
            self.stream.push(captured.bgr)
        except StreamFull:  # the margin was too small
            self._restart(captured, "context full")
            self.stream.push(captured.bgr)
        self._num_unasked += 1
        self._num_of_scene += 1
        if self._due_s is None:
            self._due_s = captured.time_s + self._ask_every_s

    def is_due(self, captured: Captured) -> bool:
        """Whether to ask now: it is time, or the next frame starts a new context. Of a scene, only at its end."""
        is_time = captured.time_s >= (self._due_s or 0.0)
        return self.has_news(captured) and (is_time or (captured.scene is None and self._why_full(1) != ""))

    def has_news(self, captured: Captured) -> bool:
        """Whether frames were pushed that no answer is about yet, and none of them is of a scene that goes on."""
        return self._num_unasked > 0 and (captured.scene is None or captured.scene.is_last)

    def ask(self, captured: Captured) -> Reply:
        """Ask about everything in the context; `captured` is its newest frame."""
        answer = self.stream.ask(self.question, max_new_tokens=self._max_new_tokens)
        graded = grade(answer.text, captured.scene, counts=self._saw_it_fairly(captured.scene))
        self._num_unasked, self._due_s = 0, captured.time_s + self._ask_every_s
        self.num_replies += 1
        self.last_reply = Reply(
            question=self.question,
            text=answer.text,
            frame_index=captured.index,
            time_s=captured.time_s,
            finished=answer.finished,
            prefill_ms=answer.prefill_ms,
            decode_ms=answer.decode_ms,
            grade=graded,
        )
        return self.last_reply

    def notice(self, time_s: float) -> str:
        """What happened to the context lately, else empty."""
        return self._notice if time_s < self._notice_until_s else ""

    def _saw_it_fairly(self, scene: KnownScene | None) -> bool:
        """Whether a trained model has all of the scene in its context, and was not asked about it before."""
        num_seen = min(self._num_of_scene, self.stream.num_context_frames)  # a re-anchor forgets the oldest
        is_whole = scene is not None and num_seen == scene.num_frames
        return is_whole and self._num_unasked > 0 and not self.random_weights

    def _rows_needed(self, num_frames: int) -> int:
        return self.stream.rows_needed(num_frames, question=self.question, max_new_tokens=self._max_new_tokens)

    def _why_full(self, num_frames: int) -> str:
        """Why so many more frames, or one, and the question do not fit; empty if they do."""
        seen, trained = self.stream.num_context_frames, self._trained_frames
        if seen == 0:
            return ""
        # Frame by frame, a stream that re-anchors takes care of itself; a scene must not be cut in two.
        has_limit = num_frames > 1 or self.stream.clock == "run-on"
        if has_limit and seen >= trained:
            return f"{seen} frames, as many as the model was trained on"
        if has_limit and seen + num_frames > trained:
            return f"the next scene would pass {trained} frames, as many as the model was trained on"
        if self.context_rows + num_frames * self._frame_rows + self._ask_rows > self.context:
            return "context full"
        return ""

    def _restart(self, captured: Captured, why: str) -> None:
        self.stream.reset()
        self.num_restarts += 1
        self._num_of_scene = 0
        self._notice = f"{why}: started again at frame {captured.index}"
        self._notice_until_s = captured.time_s + NOTICE_S


def require_endless(manifest: Manifest) -> None:
    """Raise StreamError for a model whose time is t / T: a live view has no T."""
    if manifest.time_mode == "fixed":
        raise StreamError(
            "this model's time mode is 'fixed': it must know the number of frames, and a live view has no end",
            expected="a model whose time mode is 'absolute'",
            fix="stream a file of known length instead: pvc-export run BUNDLE --video FILE",
        )
