"""Streams an answer, decoded on a thread, as pieces on an event loop. Sent text is never retracted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future

from engines.answer import Answer

from .service import Piece, Usage

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Decoding of a character that is spread over several tokens, until all of them are there."""


class Telling:
    """One answer. A slow client gets larger pieces, so nothing queues up for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, stop: Sequence[str]) -> None:
        """stop: texts before which the answer ends; no part of them may be sent."""
        self._loop, self._stop = loop, tuple(stop)
        self._text, self._told, self._news = "", "", asyncio.Event()

    def heard(self, text: str) -> None:
        """Note the answer so far. May be called on any thread."""
        self._text = text
        self._wake()

    async def pieces(self, answer: Future[Answer]) -> AsyncGenerator[Piece, None]:
        """The pieces; the last one has the usage. Raises what the answer raises."""
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
            return ""  # more tokens changed the decoded text; wait until it extends the sent text again
        untold = text[len(self._told) :]
        self._told = text
        return untold

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            return  # the server has ended; no one is waiting


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of an answer that cannot change any more: without an incomplete character, and without the possible
    beginning of a stop text."""
    text = text.rstrip(UNFINISHED)
    held = max((_overlap(text, each) for each in stop), default=0)
    return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of the text that are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
