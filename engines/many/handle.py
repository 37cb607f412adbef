"""A handle on one of many streams: its user calls it from any thread, and the scheduler's thread does the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Literal, TypeVar

from ..answer import Answer, PushTiming
from ..answering import Answering
from ..errors import StreamError
from ..memory import Array
from ..prompt import Turn
from ..sampling import GREEDY, Sampling
from ..stream import PVCStream

T = TypeVar("T")

WhenFull = Literal["drop-oldest", "refuse"]
"""Treatment of a frame that arrives while the queue is full.

drop-oldest  the oldest waiting frame is dropped: a camera should show the present
refuse       the new frame is refused with Busy and may be sent again: nothing is lost
"""


class Busy(StreamError):
    """The queue is full; there will be space later. `retry_after_s`: an estimate of when."""

    def __init__(self, what: str, *, retry_after_s: float = 1.0, expected: str = "", fix: str = "") -> None:
        super().__init__(what, expected=expected, fix=fix)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLimits:
    """Queue limits per stream."""

    frames: int = 4
    questions: int = 16
    when_full: WhenFull = "drop-oldest"

    def __post_init__(self) -> None:
        if self.frames < 1 or self.questions < 1:
            raise StreamError(
                f"limits of {self.frames} frames and {self.questions} questions", expected="at least one of each"
            )


@dataclass(eq=False, kw_only=True, slots=True)
class Question:
    """A question that waits or is being answered.

    answer  future of the answer. Cancelling it ends the question at the next token
    heard   called on the scheduler's thread after each token, with the answer so far
    """

    text: str
    images: Sequence[Array]
    max_tiles: int | None
    max_new_tokens: int
    keep: bool
    earlier: Sequence[Turn]
    sampling: Sampling
    stop: Sequence[str]
    heard: Callable[[str], None] | None
    after_frame: int
    answer: Future[Answer] = field(default_factory=Future)
    answering: Answering | None = None


@dataclass(eq=False, kw_only=True, slots=True)
class Call:
    """A function to call with the stream, between two questions."""

    function: Callable[[PVCStream], Any]
    after_frame: int
    result: Future[Any] = field(default_factory=Future)


class StreamHandle:
    """Made by Scheduler.open. Its methods may be called from any thread and return immediately.

    Frames are pushed in order of arrival. A question covers the frames that arrived before it and those pushed while it
    waited. Questions and calls are done one after another. While a question is answered, frames continue to be pushed.

    num_dropped  frames dropped because of `limits.when_full`
    """

    def __init__(
        self, stream: PVCStream, *, options: dict[str, Any], limits: QueueLimits, changed: Condition, is_spare: bool
    ) -> None:
        """`changed` guards the queues and is notified of changes. is_spare: reuse the stream once this is closed."""
        self._stream: PVCStream | None = stream
        self._at_end = (0, 0)  # frames and anchors
        self.options, self.is_spare = options, is_spare
        self.limits, self.num_dropped, self.is_closed = limits, 0, False
        self.frames: deque[tuple[int, Any, Future[PushTiming | None]]] = deque()
        self.line: deque[Question | Call] = deque()
        self.asked: Question | None = None  # the question being answered
        self.num_came = 0  # number of frames received
        self.gone: Future[None] = Future()
        self.was_frame = False  # whether the last step was a frame
        self._changed = changed

    def push(self, frame_bgr: Any) -> Future[PushTiming | None]:
        """Queue the next frame, as PVCStream.push takes it. The future holds its timing; None if it was dropped; or
        what PVCStream.push raises, in which case the frame is not part of the stream.

        Raises Busy if the queue is full and limits.when_full is 'refuse'; StreamError once it is closed.
        """
        done: Future[PushTiming | None] = Future()
        with self._changed:
            self._require_open()
            left_out = None
            if len(self.frames) >= self.limits.frames:
                if self.limits.when_full == "refuse":
                    raise Busy(
                        f"{len(self.frames)} frames of this stream are waiting",
                        expected=f"{self.limits.frames} or fewer",
                        fix="send it again later, or send fewer per second", retry_after_s=0.2,
                    )  # fmt: skip
                _, _, left_out = self.frames.popleft()
                self.num_dropped += 1
            self.num_came += 1
            self.frames.append((self.num_came, frame_bgr, done))
            self._changed.notify_all()
        if left_out is not None and left_out.set_running_or_notify_cancel():
            left_out.set_result(None)
        return done

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
        heard: Callable[[str], None] | None = None,
    ) -> Future[Answer]:
        """Queue a question, as for PVCStream.ask. The future holds the answer, or what ask raises. Cancel it to stop.

        heard  is called on the scheduler's thread after each token, with the answer so far; it must not block
        Raises Busy if the queue is full, StreamError once it is closed.
        """
        with self._changed:
            asked = Question(
                text=question, images=images, max_tiles=max_tiles, max_new_tokens=max_new_tokens, keep=keep,
                earlier=earlier, sampling=sampling, stop=stop, heard=heard, after_frame=self.num_came,
            )  # fmt: skip
            self._stand_in_line(asked)
        return asked.answer

    def call(self, function: Callable[[PVCStream], T]) -> Future[T]:
        """Call any function on the scheduler's thread: call(PVCStream.reset), call(lambda s: s.save(path)).

        Raises what `ask` raises."""
        with self._changed:
            call = Call(function=function, after_frame=self.num_came)
            self._stand_in_line(call)
        return call.result

    def close(self) -> Future[None]:
        """Close the stream: waiting work fails with StreamError, and an answer is cut. May be called again.

        The future is done once another stream can be opened instead.
        """
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
        return self.gone

    @property
    def stream(self) -> PVCStream:
        """For the scheduler's thread only. Raises StreamError once it is closed: its caches then serve others."""
        if self._stream is None:
            raise StreamError("this stream is closed", fix="open another one")
        return self._stream

    @property
    def num_frames(self) -> int:
        """Frames of the stream; after closing, the final number."""
        return self._at_end[0] if self._stream is None else self._stream.num_frames

    @property
    def num_anchors(self) -> int:
        """Anchors of the stream; after closing, the final number."""
        return self._at_end[1] if self._stream is None else self._stream.num_anchors

    def let_go(self) -> PVCStream:
        """Called by the scheduler after closing: fail everything that waits. Returns the stream, for reuse."""
        error = StreamError("this stream was closed before that was done", fix="open another one and send it again")
        waiting: list[Future[Any]] = [done for _, _, done in self.frames]
        waiting += [each.answer if isinstance(each, Question) else each.result for each in self.line]
        if self.asked is not None:
            waiting.append(self.asked.answer)
            self.stream.cancel()
        self.frames.clear()
        self.line.clear()
        self.asked = None
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        stream = self.stream
        self._at_end = stream.num_frames, stream.num_anchors
        self._stream = None
        return stream

    @property
    def num_waiting(self) -> int:
        """Waiting frames and questions, plus the question being answered."""
        return len(self.frames) + len(self.line) + (self.asked is not None)

    def _stand_in_line(self, what: Question | Call) -> None:
        self._require_open()
        if len(self.line) >= self.limits.questions:
            raise Busy(
                f"{len(self.line)} questions of this stream are waiting",
                expected=f"{self.limits.questions} or fewer",
                fix="ask again once some are answered", retry_after_s=1.0,
            )  # fmt: skip
        self.line.append(what)
        self._changed.notify_all()

    def _require_open(self) -> None:
        if self.is_closed:
            raise StreamError("this stream is closed", fix="open another one")
