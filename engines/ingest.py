"""When the LLM takes in what the vision side saw: at once, or when somebody asks."""

from __future__ import annotations

from typing import Literal, get_args

from .errors import StreamError

Ingest = Literal["eager", "lazy"]
"""When the LLM takes in a frame.

eager  at once: an answer waits for nothing
lazy   with the next question, or when `max_waiting` frames wait: several frames share one pass over the LLM's weights,
       and a stream that is never asked costs its vision side only. Nothing is dropped but a frame that turns out to
       overflow the LLM: the call that finds it raises NonFiniteError and drops that frame alone

While a question is answered, a frame of either kind waits.
"""
CATCH_UP = 2
"""Frames, of those that waited while a question was answered, that an eager stream takes in with each new frame."""


def require_ingest(ingest: Ingest, max_waiting: int) -> None:
    """Raise StreamError for what cannot be."""
    if ingest not in get_args(Ingest):
        raise StreamError(f"ingest is {ingest!r}", expected=f"one of {', '.join(get_args(Ingest))}")
    if max_waiting < 1:
        raise StreamError(f"max_waiting is {max_waiting}", expected="at least 1: how many frames may wait")
