"""The conversation of one stream: what its LLM has read, and what it will read next.

    rows in the LLM's cache, then waiting frames, then waiting text

Frames wait in a lazy stream (ingest.py), and in any stream that has just re-anchored. Text waits for the next special
token (prompt.py). Each part may be empty.
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
"""Number of texts before a frame whose row counts are cached."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)  # compared by identity
class FrameRows:
    """A frame as the LLM reads it.

    rows     (L, E): the waiting text, the frame's prefix, the frame itself. Never written to
    pending  that text
    index    number of the frame in the prompt, from 1; restarts with the stream
    """

    rows: Array
    pending: str
    index: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branch:
    """A question being answered, on the stream's own cache.

    start  its rows follow this row
    held   rows reserved for question and answer if they are kept, otherwise 0
    """

    start: int
    held: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A position in a context.

    num_rows  rows in the LLM's cache, plus those of waiting frames
    waiting   those frames
    pending   waiting text
    branch    the question being answered
    """

    num_rows: int
    waiting: tuple[FrameRows, ...]
    pending: str
    branch: Branch | None


class Context:
    """Everything a question can refer to. Every change can be undone: see `undone_on_error`.

    language  the LLM, with the cache of the rows it has read
    waiting   frames it has not read, oldest first
    pending   text that follows both
    branch    the question being answered. Frames that arrive meanwhile wait; their place is where the branch starts, or
              after the answer if it is kept
    """

    def __init__(self, bundle: Bundle) -> None:
        self.language = LanguageModel(bundle.sessions, bundle.open_caches("llm"))
        self._tokenizer, self._prompt = bundle.tokenizer, bundle.manifest.prompt
        self._num_frame_tokens = bundle.manifest.shape.num_frame_tokens
        self.waiting: tuple[FrameRows, ...] = ()
        self.pending = self._prompt.start
        self.branch: Branch | None = None
        self._prefix_rows: dict[tuple[str, int], int] = {}  # not functools.cache, which would make a reference cycle

    @property
    def num_rows(self) -> int:
        """LLM rows in use, including waiting frames and, of a question being answered, the rows that may be kept."""
        rows = self.language.cache.length if self.branch is None else self.branch.start + self.branch.held
        return rows + _count(self.waiting)

    def mark(self) -> Mark:
        num_rows = self.language.cache.length + _count(self.waiting)
        return Mark(num_rows=num_rows, waiting=self.waiting, pending=self.pending, branch=self.branch)

    def rewind(self, mark: Mark) -> None:
        """Drop everything after the mark. Frames that waited then and were read since stay read."""
        waiting = tuple(frame for frame in mark.waiting if frame in self.waiting)
        # One statement, so that no interrupt can split it.
        self.waiting, self.pending, self.branch = waiting, mark.pending, mark.branch
        self.language.cache.truncate(mark.num_rows - _count(waiting))

    def undone_on_error(self, *, unless: Callable[[], bool] = lambda: False) -> UndoneOnError:
        """`with context.undone_on_error() as mark:` rewinds to the start of its block if the block raises anything,
        including an interrupt between any two statements.

        `unless` returns whether the block was completed nevertheless. After a NonFiniteError caused by a waiting frame,
        that frame is dropped, since every later call would fail on it; the error then names it.
        """
        return UndoneOnError(self, unless)

    def frame(self, frame_embeds: Array, *, index: int, pending: str | None = None) -> FrameRows:
        """A frame (M, E) as the LLM would read it after `pending`, by default the text that waits now."""
        pending = self.pending if pending is None else pending
        ids = self._tokenizer.encode(pending + self._prompt.before_frame(index))
        rows = np.concatenate([self.language.embed(ids), frame_embeds])
        return FrameRows(rows=rows, pending=pending, index=index)

    def frames_that_fit(self, most: int, *, first_index: int, num_reserved: int) -> int:
        """Number of further frames that fit, at most `most`, if the first has number first_index and num_reserved rows
        must stay free after the last."""
        room = self.language.cache.capacity - self.num_rows - num_reserved
        return self._count_fitting(most, room, self.pending, first_index)

    def frames_that_fit_anew(self, most: int, *, notes: str, num_reserved: int) -> int:
        """Like frames_that_fit, for a conversation that starts with these notes."""
        room = self.language.cache.capacity - num_reserved
        return self._count_fitting(most, room, self._prompt.start + notes, first_index=1)

    def rows_anew(self, num_frames: int, *, question: str, notes: str) -> int:
        """Rows of a conversation that starts with these notes, followed by num_frames frames and a question."""
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
        """Cached, since the same few are requested repeatedly: a model is trained on a limited number of frames."""
        if (pending, index) not in self._prefix_rows:
            if len(self._prefix_rows) == MOST_PREFIXES:
                self._prefix_rows.clear()
            self._prefix_rows[pending, index] = len(self._tokenizer.encode(pending + self._prompt.before_frame(index)))
        return self._prefix_rows[pending, index]

    def add(self, frame: FrameRows, *, wait: bool) -> None:
        """Feed a frame to the LLM, or let it wait. Raises StreamFull immediately, even for a frame that would wait."""
        if wait:
            self.reserve(len(frame.rows))
            self.waiting += (frame,)
        else:
            self.append(frame.rows)
        self.pending = self._prompt.frame_end()

    def take_in(self, num_frames: int) -> None:
        """Feed the first waiting frames to the LLM together: all of them or, on error, none."""
        with self.undone_on_error():
            self._feed(self.waiting[:num_frames])

    def append(self, rows: Array) -> Array:
        """Feed all waiting frames and then `rows` (L, E) to the LLM, in as few passes as possible.

        Returns hidden (1, 1, E) of the last row. Raises StreamFull before anything runs, and NonFiniteError; the caller
        undoes the changes after an error.
        """
        return self._feed(self.waiting, rows)

    def say(self, token: int) -> Array:
        """Feed one token of an answer. Returns its hidden row (1, 1, E)."""
        return self.language.append(self.language.embed([token]))

    def answer(self, rows: Array, *, keep: bool, max_new_tokens: int) -> tuple[Branch, Array]:
        """Begin to answer a question with these rows (L, E), for which there is space. Returns the branch, and hidden
        (1, 1, E) of the last row. Raises NonFiniteError; the caller undoes the changes after an error."""
        start, hidden = self.num_rows, self.append(rows)
        held = len(rows) + max_new_tokens + len(self._tokenizer.encode(self._prompt.next_turn)) if keep else 0
        self.branch = branch = Branch(start=start, held=held)
        return branch, hidden

    def end_branch(self, *, keep: bool) -> None:
        """End the question being answered and drop it, or keep it: frames that arrived meanwhile then follow it. May be
        run twice."""
        branch = self.branch
        if branch is None:
            return
        if not keep:
            self.language.cache.truncate(branch.start)
            self.branch = None
            return
        self.next_turn()

    def next_turn(self) -> None:
        """End an answer that is kept. Frames that arrived during its decoding follow it."""
        waiting, pending = self.waiting, self._prompt.next_turn
        if waiting:
            waiting, pending = (self._told_after(pending, waiting[0]), *waiting[1:]), self._prompt.frame_end()
        self.waiting, self.pending, self.branch = waiting, pending, None

    def restart(self, notes: str = "") -> None:
        """Drop everything. The conversation starts with the notes."""
        self.waiting, self.pending, self.branch = (), self._prompt.start + notes, None
        self.language.cache.truncate(0)

    def reserve(self, num_rows: int) -> None:
        """Raise StreamFull if `num_rows` more rows do not fit after the waiting frames."""
        self.language.cache.reserve(self.num_rows - self.language.cache.length + num_rows)

    def _feed(self, frames: tuple[FrameRows, ...], *rows: Array) -> Array:
        hidden = self.language.append(np.concatenate([*(frame.rows for frame in frames), *rows]))
        self.waiting = self.waiting[len(frames) :]  # from here on they count as read, whatever is undone
        return hidden

    def drop_what_overflows(self) -> None:
        """Find the first waiting frame for which the LLM returns NaN and drop it; the text before it stays.

        Raises NonFiniteError if there is one.
        """
        start = self.language.cache.length
        try:
            for index, frame in enumerate(self.waiting):
                try:
                    self.language.append(frame.rows)
                except NonFiniteError as error:
                    self._drop(index)
                    error.what = f"waiting frame {frame.index} was dropped: {error.what}"
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
        """The same frame, following other text."""
        return self.frame(frame.rows[-self._num_frame_tokens :], index=frame.index, pending=pending)


class UndoneOnError:
    """The context manager of Context.undone_on_error.

    Not a @contextmanager: an interrupt can leave its generator behind, which would undo later, when it is collected.
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
    """Most context rows that a question and its answer take, in a stream with or without frames."""
    prompt = bundle.manifest.prompt
    texts = (pending + question + prompt.ask_suffix for pending in (prompt.start, prompt.frame_end(), prompt.next_turn))
    return max(len(bundle.tokenizer.encode(text)) for text in texts) + max_new_tokens
