"""One stream that watches without an end: frames in, the question asked now and then, a new start when it is full.

Unusual: room for the question and its answer is kept free, so that a context that fills up is asked about once more
before it is forgotten. Otherwise a small context and a rare question would give no answer at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines import Bundle, PVCStream
from engines.errors import StreamError, StreamFull
from engines.manifest import Manifest

from .capture import Captured

NOTICE_S = 4.0  # how long an overlay shows that the stream was started again
MARGIN_ROWS = 8  # a frame's number takes more tokens as it grows


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model said about the frames up to `frame_index`. finished: false if the token limit cut it short."""

    text: str
    frame_index: int
    time_s: float
    finished: bool
    prefill_ms: float
    decode_ms: float


class Watcher:
    """A PVCStream and its one question. All times are the source's `time_s`."""

    def __init__(self, bundle: Bundle, question: str, *, ask_every_s: float, max_new_tokens: int) -> None:
        """Raises StreamError for a question that cannot be asked, StreamFull if one frame leaves no room for it."""
        require_endless(bundle.manifest)
        bundle.tokenizer.refuse_special_tokens(question)
        self.stream = PVCStream(bundle)
        self.question, self.context = question, bundle.manifest.limits.context
        self.last_reply: Reply | None = None
        self.num_replies = self.num_restarts = 0
        self._ask_every_s, self._max_new_tokens = ask_every_s, max_new_tokens
        self._ask_rows, with_frame = (
            self.stream.rows_needed(num_frames, question=question, max_new_tokens=max_new_tokens)
            for num_frames in (0, 1)
        )
        self._frame_rows = with_frame - self._ask_rows + MARGIN_ROWS
        if with_frame + MARGIN_ROWS > self.context:
            raise StreamFull(
                f"one frame, the question and {max_new_tokens} tokens of answer need {with_frame + MARGIN_ROWS} "
                f"context rows, but the bundle has {self.context}. Ask shorter, lower --max-new-tokens, or export "
                "with a larger --context"
            )
        self._due_s: float | None = None
        self._num_unasked = 0
        self._notice, self._notice_until_s = "", 0.0

    @property
    def context_rows(self) -> int:
        return self.stream.context_rows

    def push(self, captured: Captured) -> None:
        """Let the model see a frame, in a new context if the old one is full."""
        if self._is_full():
            self._restart(captured)
        try:
            self.stream.push(captured.bgr)
        except StreamFull:  # the margin was too small
            self._restart(captured)
            self.stream.push(captured.bgr)
        self._num_unasked += 1
        if self._due_s is None:
            self._due_s = captured.time_s + self._ask_every_s

    def is_due(self, captured: Captured) -> bool:
        """Whether to ask now: it is time, or the next frame starts a new context."""
        return self._num_unasked > 0 and (self._is_full() or captured.time_s >= (self._due_s or 0.0))

    @property
    def has_news(self) -> bool:
        """Frames were pushed that no answer is about yet."""
        return self._num_unasked > 0

    def ask(self, captured: Captured) -> Reply:
        """Ask about everything in the context; `captured` is its newest frame."""
        answer = self.stream.ask(self.question, max_new_tokens=self._max_new_tokens)
        self._num_unasked, self._due_s = 0, captured.time_s + self._ask_every_s
        self.num_replies += 1
        self.last_reply = Reply(
            text=answer.text,
            frame_index=captured.index,
            time_s=captured.time_s,
            finished=answer.finished,
            prefill_ms=answer.prefill_ms,
            decode_ms=answer.decode_ms,
        )
        return self.last_reply

    def notice(self, time_s: float) -> str:
        """What happened to the context lately, else empty."""
        return self._notice if time_s < self._notice_until_s else ""

    def _is_full(self) -> bool:
        return self.context_rows + self._frame_rows + self._ask_rows > self.context and self.stream.num_frames > 0

    def _restart(self, captured: Captured) -> None:
        self.stream.reset()
        self.num_restarts += 1
        self._notice = f"context full: started again at frame {captured.index}"
        self._notice_until_s = captured.time_s + NOTICE_S


def require_endless(manifest: Manifest) -> None:
    """Raise StreamError for a model whose time is t / T: a live view has no T."""
    if manifest.time_mode == "fixed":
        raise StreamError(
            "this model's time mode is 'fixed': it must know the number of frames beforehand, and a live view has no "
            "end. Expected 'absolute'. Stream a file of known length instead: pvc-export run BUNDLE --video FILE"
        )
