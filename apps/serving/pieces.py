"""An answer that a thread decodes, as pieces on an event loop: what is told once is never taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future

from engines.answer import Answer

from .service import Piece, Usage

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character of several tokens is decoded to before all of them are there."""


class Telling:
    """One answer. A client that is slow gets larger pieces: nothing queues up for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, stop: Sequence[str]) -> None:
        """stop: texts before which it ends, of which no part may be told."""
        self._loop, self._stop = loop, tuple(stop)
        self._text, self._told, self._news = "", "", asyncio.Event()

    def heard(self, text: str) -> None:
        """The answer so far. On any thread."""
        self._text = text
        self._wake()

    async def pieces(self, answer: Future[Answer]) -> AsyncGenerator[Piece, None]:
        """The last one has what it took. Raises what the answer raises."""
        answer.add_done_callback(lambda _: self._wake())
        while not answer.done():
            await self._news.wait()
            self._news.clear()
            if not answer.done() and (text := self._untold(settled(self._text, self._stop))):
                yield Piece(text=text)
        done = await asyncio.wrap_future(answer, loop=self._loop)
        yield Piece(
            text=self._untold(done.text),
            finish="stop" if done.finished else "length",
            usage=Usage(
                prompt_tokens=done.num_prompt_rows, completion_tokens=len(done.token_ids), num_frames=done.num_frames
            ),
        )

    def _untold(self, text: str) -> str:
        if not text.startswith(self._told):
            return ""  # the tokenizer reads it anew, with more tokens; it will be longer soon
        untold = text[len(self._told) :]
        self._told = text
        return untold

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            return  # the server has ended, and with it whoever waited


def settled(text: str, stop: Sequence[str]) -> str:
    """What of an answer will stay as it is, however it goes on: without a character that is not whole, and without
    what may be the beginning of a text that ends it."""
    text = text.rstrip(UNFINISHED)
    held = max((_overlap(text, each) for each in stop), default=0)
    return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
