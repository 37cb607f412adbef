"""Decoding of an answer one token per step, so that frames can arrive between two tokens.

Its rows are a branch of the stream's LLM cache: no cache is copied. Frames pushed meanwhile pass through the vision
side immediately and wait for the LLM.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from .answer import MARGIN_TOKENS, Answer
from .bundle import Bundle
from .context import Context
from .errors import StreamError
from .memory import Array
from .sampling import GREEDY, Sampler, Sampling


class Answering:
    """An answer in progress, as PVCStream.begin returns it. One at a time per stream.

    answer  the result once it is done, else None
    """

    def __init__(
        self,
        bundle: Bundle,
        context: Context,
        rows: Array,
        *,
        max_new_tokens: int,
        keep: bool,
        vision_ms: float,
        since: float,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        num_frames: int = 0,
    ) -> None:
        """rows (L, E) are the question's; they are fed immediately, and the caller made room for them. `since`: start
        of prefill, by time.perf_counter(). `stop`: texts that end the answer and are left out of it. Raises
        NonFiniteError, and StreamError if a stop text is empty; after an error the caller undoes the changes."""
        if "" in stop:
            raise StreamError("a stop text is empty", expected="stop texts of at least one character")
        self._tokenizer, self._context = bundle.tokenizer, context
        self._limit, self._keep = max_new_tokens, keep
        self._sampler, self._stop = Sampler(sampling), tuple(stop)
        self._tokens: list[int] = []
        self._margin = float("inf")
        self.answer: Answer | None = None
        self._branch, hidden = context.answer(rows, keep=keep, max_new_tokens=max_new_tokens)
        self._num_prompt_rows, self._num_frames = context.language.cache.length, num_frames
        self._logits = context.language.logits(hidden)
        self._vision_ms, self._prefill_ms, self._decode_ms = vision_ms, 1e3 * (time.perf_counter() - since), 0.0

    @property
    def text(self) -> str:
        """The text decoded so far, up to a stop text. A character of several tokens may still be incomplete."""
        return before_stop(self._tokenizer.decode(self._tokens), self._stop)

    @property
    def num_tokens(self) -> int:
        """Tokens decoded so far, without the end token."""
        return len(self._tokens)

    @property
    def is_cut(self) -> bool:
        """Whether it cannot continue: cancelled, its stream was reset, or re-anchored twice since it began."""
        return self.answer is None and self._context.branch is not self._branch

    def step(self) -> bool:
        """Decode one more token; return whether the answer is done. Any exception cancels the answer.

        Raises StreamError if it is done or cannot continue, and NonFiniteError.
        """
        if self.answer is not None or self.is_cut:
            how = "done" if self.answer is not None else "cut: its stream was reset, or it was cancelled"
            raise StreamError(f"this answer is {how}", fix="ask again")
        started = time.perf_counter()
        try:
            finished = self._decode()
            self._decode_ms += 1e3 * (time.perf_counter() - started)
            if finished is not None:
                answer = self._concluded(finished)
                self._context.end_branch(keep=self._keep)
                self.answer = answer
        except BaseException:
            self.cancel()
            raise
        return self.answer is not None

    def cancel(self) -> None:
        """Drop question and answer. Does nothing once it is done or cut."""
        if self.answer is None and not self.is_cut:
            self._context.end_branch(keep=False)

    def _decode(self) -> bool | None:
        """Choose the next token, feed it to the LLM. True at the end of the answer, False at the limit, else None."""
        token = self._sampler.choose(self._logits)
        if len(self._tokens) < MARGIN_TOKENS:
            self._margin = min(self._margin, _lead(self._logits))
        if token in self._tokenizer.stop_ids:
            return True
        self._tokens.append(token)
        hidden = self._context.say(token)
        if self._stop and self._says_stop():
            return True
        if len(self._tokens) == self._limit:
            return False
        self._logits = self._context.language.logits(hidden)
        return None

    def _says_stop(self) -> bool:
        text = self._tokenizer.decode(self._tokens)
        return any(stop in text for stop in self._stop)

    def _concluded(self, finished: bool) -> Answer:
        return Answer(
            text=self.text,
            token_ids=tuple(self._tokens),
            finished=finished,
            vision_ms=self._vision_ms,
            prefill_ms=self._prefill_ms,
            decode_ms=self._decode_ms,
            margin=self._margin,
            num_prompt_rows=self._num_prompt_rows,
            num_frames=self._num_frames,
        )


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of these stop texts."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def _lead(logits: Array) -> float:
    """Lead of the likeliest token over the next one, from logits (V,)."""
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)
