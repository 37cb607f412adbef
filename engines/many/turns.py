"""A stream's next step. Each step is one call of its PVCStream and ends in a future; none raises."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..answer import PushTiming
from .handle import Call, Question, StreamHandle

Step = Callable[[], None]


@dataclass(slots=True)
class Counts:
    """Totals over all streams since the scheduler started."""

    rounds: int = 0
    steps: int = 0
    frames: int = 0
    tokens: int = 0
    answers: int = 0
    failures: int = 0
    busy_s: float = 0.0


def is_ready(handle: StreamHandle) -> bool:
    """Whether it has work to do. The caller holds the lock."""
    return handle.asked is not None or bool(handle.frames) or bool(handle.line)


def next_step(handle: StreamHandle, counts: Counts) -> Step | None:
    """Take the next piece of work out of the queues. The caller holds the lock.

    Frames and tokens alternate; a frame that would cut the answer waits for its end. A question's turn comes when the
    frames before it are done.
    """
    if handle.asked is not None and (handle.was_frame or not handle.frames or handle.stream.next_frame_cuts):
        handle.was_frame = False
        return partial(_decode, handle, handle.asked, counts)
    if handle.asked is None and _has_its_turn(handle):
        handle.was_frame = False
        first = handle.line.popleft()
        if isinstance(first, Question):
            handle.asked = first
            return partial(_begin, handle, first, counts)
        return partial(_call, handle, first, counts)
    if handle.frames:
        handle.was_frame = True
        _, frame, done = handle.frames.popleft()
        return partial(_push, handle, frame, done, counts)
    return None


def _has_its_turn(handle: StreamHandle) -> bool:
    """Whether the first question or call may start: no frame that arrived before it is waiting."""
    return bool(handle.line) and not (handle.frames and handle.frames[0][0] <= handle.line[0].after_frame)


def _push(handle: StreamHandle, frame: Any, done: Future[PushTiming | None], counts: Counts) -> None:
    try:
        if not done.set_running_or_notify_cancel():
            return  # cancelled: not part of the stream
        timing = handle.stream.push(frame)
    except BaseException as error:
        counts.failures += 1
        done.set_exception(error)
    else:
        counts.frames += 1
        done.set_result(timing)


def _begin(handle: StreamHandle, asked: Question, counts: Counts) -> None:
    if asked.answer.cancelled():
        handle.asked = None
        return
    try:
        asked.answering = handle.stream.begin(
            asked.text, images=asked.images, max_tiles=asked.max_tiles, max_new_tokens=asked.max_new_tokens,
            keep=asked.keep, earlier=asked.earlier, sampling=asked.sampling, stop=asked.stop,
        )  # fmt: skip
    except BaseException as error:
        _end(handle, asked, counts, error)


def _decode(handle: StreamHandle, asked: Question, counts: Counts) -> None:
    answering = asked.answering
    assert answering is not None
    if asked.answer.cancelled():
        answering.cancel()
        handle.asked = None
        return
    try:
        is_done = answering.step()
        if asked.heard is not None:
            asked.heard(answering.text)
    except BaseException as error:
        answering.cancel()
        _end(handle, asked, counts, error)
        return
    counts.tokens += 1
    if is_done:
        _end(handle, asked, counts, None)


def _end(handle: StreamHandle, asked: Question, counts: Counts, error: BaseException | None) -> None:
    handle.asked = None
    if error is not None:
        counts.failures += 1
    else:
        counts.answers += 1
    if not asked.answer.set_running_or_notify_cancel():
        return
    if error is not None:
        asked.answer.set_exception(error)
        return
    assert asked.answering is not None and asked.answering.answer is not None
    asked.answer.set_result(asked.answering.answer)


def _call(handle: StreamHandle, call: Call, counts: Counts) -> None:
    if not call.result.set_running_or_notify_cancel():
        return
    try:
        call.result.set_result(call.function(handle.stream))
    except BaseException as error:
        counts.failures += 1
        call.result.set_exception(error)
