"""An answer in pieces: together they are the whole answer, and no text that was sent is withdrawn."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.serving.pieces import Telling, settled
from apps.serving.service import Piece
from engines.answer import Answer
from engines.answering import before_stop

MAYBE_WHOLE = "\N{REPLACEMENT CHARACTER}"


def answer(text: str, *, finished: bool = True) -> Answer:
    return Answer(
        text=text, token_ids=(1, 2), finished=finished, vision_ms=0, prefill_ms=0, decode_ms=0, margin=0,
        num_prompt_rows=7, num_frames=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "stop", "told"),
    [
        ("It is", (), "It is"), (f"caf{MAYBE_WHOLE}", (), "caf"), ("one\nU", ("\nUser:",), "one"),
        ("one\nV", ("\nUser:",), "one\nV"), ("aaa", ("aab",), "a"), ("ab", ("b", "bc"), "a"), ("", ("x",), ""),
    ],
)  # fmt: skip
def test_what_may_change_is_not_told(text: str, stop: tuple[str, ...], told: str) -> None:
    assert settled(text, stop) == told


@given(text=st.text("abc", max_size=20), stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_answer_whatever_ends_it(text: str, stop: list[str]) -> None:
    """Feed the text one character per token, as a model would, up to the stop text."""
    whole = before_stop(text, stop)
    told = ""
    for length in range(1, len(text) + 1):
        if before_stop(text[:length], stop) != text[:length]:
            break
        now = settled(text[:length], stop)
        assert now.startswith(told) and whole.startswith(now)
        told = now
    assert whole.startswith(told)


def pieces_of(texts: list[str], last: Answer) -> list[Piece]:
    async def tell() -> list[Piece]:
        telling, future = Telling(asyncio.get_running_loop(), stop=()), Future[Answer]()

        def speak() -> None:
            for text in texts:
                telling.heard(text)
                threading.Event().wait(0.01)
            future.set_result(last)

        speaker = threading.Thread(target=speak)
        speaker.start()
        told = [piece async for piece in telling.pieces(future)]
        speaker.join()
        return told

    return asyncio.run(tell())


def test_tokens_are_told_as_they_come_and_the_end_says_what_it_took() -> None:
    *pieces, last = pieces_of(["It", "It is", "It is red"], answer("It is red."))
    assert len(pieces) >= 2 and all(piece.finish is None for piece in pieces)
    assert "".join(piece.text for piece in [*pieces, last]) == "It is red."
    assert last.finish == "stop" and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.num_frames) == (7, 2, 3)


def test_a_character_is_told_when_it_is_whole() -> None:
    pieces = pieces_of([f"caf{MAYBE_WHOLE}", "café"], answer("café", finished=False))
    assert "".join(piece.text for piece in pieces) == "café" and pieces[-1].finish == "length"


def test_what_an_answer_raises_is_raised() -> None:
    async def tell() -> None:
        telling, future = Telling(asyncio.get_running_loop(), stop=()), Future[Answer]()
        future.set_exception(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            [piece async for piece in telling.pieces(future)]

    asyncio.run(tell())


def test_a_loop_that_has_ended_is_no_trouble_for_the_thread() -> None:
    loop = asyncio.new_event_loop()
    telling = Telling(loop, stop=())
    loop.close()
    telling.heard("It")
