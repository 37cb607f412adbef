"""The conversation of one stream: what its LLM has taken in, and what it will be told next.

    rows in the LLM's cache, then frames that wait, then text that waits

Frames wait in a lazy stream (ingest.py), and in any stream that has just started anew. Text waits for the next special
token (prompt.py). Each may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from .bundle import Bundle
from .errors import NonFiniteError
from .language import LanguageModel
from .memory import Array

MOST_PREFIXES = 1024
"""Texts before a frame whose rows are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)  # two frames are one only if they are the same object
class FrameRows:
    """A frame as the LLM is told of it.

    rows     (L, E): the text that waited, the frame's prefix, the frame itself. Nobody writes into them
    pending  that text
    index    as the prompt counts frames, from 1; starts anew with the stream
    """

    rows: Array
    pending: str
    index: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branch:
    """Where a question is answered, on the stream's own cache.

    start  the row behind which its rows are
    held   rows that question and answer may still take when it is done: 0 if they are forgotten
    """

    start: int
    held: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Where a context stood.

    num_rows  in the LLM's cache, and of the frames that waited
    waiting   those frames
    pending   text that waited
    branch    what was being answered
    """

    num_rows: int
    waiting: tuple[FrameRows, ...]
    pending: str
    branch: Branch | None


class Context:
    """What a question can refer to. Every change can be undone: see `undone_on_error`.

    language  the LLM, with the cache of the rows that it has taken in
    waiting   frames that it has not, oldest first
    pending   text that comes after both
    branch    the question that is being answered. Frames that come meanwhile wait, and belong where it starts; or
              behind the answer, if that is to stay
    """

    def __init__(self, bundle: Bundle) -> None:
        self.language = LanguageModel(bundle.sessions, bundle.open_caches("llm"))
        self._tokenizer, self._prompt = bundle.tokenizer, bundle.manifest.prompt
        self._num_frame_tokens = bundle.manifest.shape.num_frame_tokens
        self.waiting: tuple[FrameRows, ...] = ()
        self.pending = self._prompt.start
        self.branch: Branch | None = None
        self._prefix_rows: dict[tuple[str, int], int] = {}  # and no cache of a method, which would be a cycle

    @property
    def num_rows(self) -> int:
        """LLM rows in use; those of frames that wait are counted, and of what is being answered those that may stay."""
        rows = self.language.cache.length if self.branch is None else self.branch.start + self.branch.held
        return rows + _count(self.waiting)

    def mark(self) -> Mark:
        num_rows = self.language.cache.length + _count(self.waiting)
        return Mark(num_rows=num_rows, waiting=self.waiting, pending=self.pending, branch=self.branch)

    def rewind(self, mark: Mark) -> None:
        """Forget everything after the mark. Frames that waited there and were taken in since stay taken in."""
        waiting = tuple(frame for frame in mark.waiting if frame in self.waiting)
        # One statement, which no interrupt divides.
        self.waiting, self.pending, self.branch = waiting, mark.pending, mark.branch
        self.language.cache.truncate(mark.num_rows - _count(waiting))

    def undone_on_error(self, *, unless: Callable[[], bool] = lambda: False) -> UndoneOnError:
        """`with context.undone_on_error() as mark:` rewinds to the start of its block if the block raises anything.

        That holds for an interrupt between any two statements. `unless` tells whether the block was completed all the
        same. After a NonFiniteError the waiting frame that caused it, if one did, is dropped: else each later call
        would fail on it. NonFiniteError then names that frame.
        """
        return UndoneOnError(self, unless)

    def frame(self, frame_embeds: Array, *, index: int, pending: str | None = None) -> FrameRows:
        """A frame (M, E) as the LLM would be told of it after `pending`, by default the text that waits now."""
        pending = self.pending if pending is None else pending
        ids = self._tokenizer.encode(pending + self._prompt.before_frame(index))
        rows = np.concatenate([self.language.embed(ids), frame_embeds])
        return FrameRows(rows=rows, pending=pending, index=index)

    def frames_that_fit(self, most: int, *, first_index: int, num_reserved: int) -> int:
        """How many more frames fit, at most `most`, where the first is told as number first_index and so many rows stay
        free behind the last."""
        room = self.language.cache.capacity - self.num_rows - num_reserved
        return self._count_fitting(most, room, self.pending, first_index)

    def frames_that_fit_anew(self, most: int, *, notes: str, num_reserved: int) -> int:
        """As frames_that_fit, of a conversation that starts with these notes."""
        room = self.language.cache.capacity - num_reserved
        return self._count_fitting(most, room, self._prompt.start + notes, first_index=1)

    def rows_anew(self, num_frames: int, *, question: str, notes: str) -> int:
        """Rows of a conversation that starts with these notes, has so many frames, and a question behind them."""
        pending, rows = self._prompt.start + notes, 0
        for index in range(1, num_frames + 1):
            rows += self._num_prefix_rows(pending, index) + self._num_frame_tokens
            pending = self._prompt.frame_end()
        return rows + len(self._tokenizer.encode(pending + question + self._prompt.ask_suffix))

    def _count_fitting(self, most: int, room: int, pending: str, first_index: int) -> int:
        for count in range(most):
            room -= self._num_prefix_rows(pending, first_index + count) + self._num_frame_tokens
            if room < 0:
                return count
            pending = self._prompt.frame_end()
        return most

    def _num_prefix_rows(self, pending: str, index: int) -> int:
        """As many as are asked for again and again: a model was trained on so many frames."""
        if (pending, index) not in self._prefix_rows:
            if len(self._prefix_rows) == MOST_PREFIXES:
                self._prefix_rows.clear()
            self._prefix_rows[pending, index] = len(self._tokenizer.encode(pending + self._prompt.before_frame(index)))
        return self._prefix_rows[pending, index]

    def add(self, frame: FrameRows, *, wait: bool) -> None:
        """Feed a frame to the LLM, or let it wait. Raises StreamFull, at once too for a frame that would wait."""
        if wait:
            self.reserve(len(frame.rows))
            self.waiting += (frame,)
        else:
            self.append(frame.rows)
        self.pending = self._prompt.frame_end()

    def take_in(self, num_frames: int) -> None:
        """Feed the first waiting frames to the LLM in one go: all of them, or on error none."""
        with self.undone_on_error():
            self._feed(self.waiting[:num_frames])

    def append(self, rows: Array) -> Array:
        """Feed all waiting frames and then `rows` (L, E) to the LLM, in passes as large as can be.

        Returns hidden (1, 1, E) of the last row. Raises StreamFull before anything is run, and NonFiniteError; the
        caller undoes what an error leaves.
        """
        return self._feed(self.waiting, rows)

    def say(self, token: int) -> Array:
        """Feed one token of an answer. Returns its hidden row (1, 1, E)."""
        return self.language.append(self.language.embed([token]))

    def answer(self, rows: Array, *, keep: bool, max_new_tokens: int) -> tuple[Branch, Array]:
        """Begin to answer a question of these rows (L, E), for which there is room. Returns the branch, and hidden
        (1, 1, E) of the last row. Raises NonFiniteError; the caller undoes what an error leaves."""
        start, hidden = self.num_rows, self.append(rows)
        held = len(rows) + max_new_tokens + len(self._tokenizer.encode(self._prompt.next_turn)) if keep else 0
        self.branch = branch = Branch(start=start, held=held)
        return branch, hidden

    def end_branch(self, *, keep: bool) -> None:
        """What was being answered is done, and is forgotten, or stays: frames that came meanwhile then come after it.
        May be run twice."""
        branch = self.branch
        if branch is None:
            return
        if not keep:
            self.language.cache.truncate(branch.start)
            self.branch = None
            return
        self.next_turn()

    def next_turn(self) -> None:
        """End an answer that stays. Frames that came while it was decoded come after it."""
        waiting, pending = self.waiting, self._prompt.next_turn
        if waiting:
            waiting, pending = (self._told_after(pending, waiting[0]), *waiting[1:]), self._prompt.frame_end()
        self.waiting, self.pending, self.branch = waiting, pending, None

    def restart(self, notes: str = "") -> None:
        """Forget everything. The conversation starts with the notes."""
        self.waiting, self.pending, self.branch = (), self._prompt.start + notes, None
        self.language.cache.truncate(0)

    def reserve(self, num_rows: int) -> None:
        """Raise StreamFull if `num_rows` more rows do not fit after the frames that wait."""
        self.language.cache.reserve(self.num_rows - self.language.cache.length + num_rows)

    def _feed(self, frames: tuple[FrameRows, ...], *rows: Array) -> Array:
        hidden = self.language.append(np.concatenate([*(frame.rows for frame in frames), *rows]))
        self.waiting = self.waiting[len(frames) :]  # from here on they are taken in, whatever is undone
        return hidden

    def drop_what_overflows(self) -> None:
        """Find the first waiting frame that the LLM returns NaN for, and drop it; the text before it stays.

        Raises NonFiniteError if there is one.
        """
        start = self.language.cache.length
        try:
            for index, frame in enumerate(self.waiting):
                try:
                    self.language.append(frame.rows)
                except NonFiniteError as error:
                    self._drop(index)
                    error.what = f"frame {frame.index}, which waited, was dropped: {error.what}"
                    raise
        finally:
            self.language.cache.truncate(start)

    def _drop(self, index: int) -> None:
        pending, before, after = self.waiting[index].pending, self.waiting[:index], self.waiting[index + 1 :]
        if not after:
            self.waiting, self.pending = before, pending
            return
        self.waiting = (*before, self._told_after(pending, after[0]), *after[1:])

    def _told_after(self, pending: str, frame: FrameRows) -> FrameRows:
        """The same frame after other text."""
        return self.frame(frame.rows[-self._num_frame_tokens :], index=frame.index, pending=pending)


class UndoneOnError:
    """What Context.undone_on_error returns.

    Not a @contextmanager: an interrupt can leave its generator behind, which would undo whenever it is collected.
    """

    def __init__(self, context: Context, unless: Callable[[], bool]) -> None:
        self._context, self._unless, self._mark = context, unless, context.mark()

    def __enter__(self) -> Mark:
        return self._mark

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self._unless():
            return
        self._context.rewind(self._mark)
        if isinstance(error, NonFiniteError):
            self._context.drop_what_overflows()


def _count(frames: Iterable[FrameRows]) -> int:
    return sum(len(frame.rows) for frame in frames)


def rows_of_question(bundle: Bundle, question: str, max_new_tokens: int) -> int:
    """Most context rows that a question and its answer take, in a stream that has seen no frame or some."""
    prompt = bundle.manifest.prompt
    texts = (pending + question + prompt.ask_suffix for pending in (prompt.start, prompt.frame_end(), prompt.next_turn))
    return max(len(bundle.tokenizer.encode(text)) for text in texts) + max_new_tokens
