"""Timing of LLM ingest: immediately, or when a question comes."""

from __future__ import annotations

from typing import Literal, get_args

from .errors import StreamError

Ingest = Literal["eager", "lazy"]
"""Time at which the LLM reads a frame.

eager  immediately: an answer waits for nothing
lazy   with the next question, or once `max_waiting` frames wait: several frames share one pass over the LLM's weights,
       and a stream without questions costs only its vision side. Nothing is dropped except a frame that overflows the
       LLM: the call that finds it raises NonFiniteError and drops only that frame

While a question is answered, frames of either kind wait.
"""
CATCH_UP = 2
"""Frames, out of those that waited during an answer, that an eager stream reads with each new frame."""


def require_ingest(ingest: Ingest, max_waiting: int) -> None:
    """Raise StreamError for an invalid value."""
    if ingest not in get_args(Ingest):
        raise StreamError(f"ingest is {ingest!r}", expected=f"one of {', '.join(get_args(Ingest))}")
    if max_waiting < 1:
        raise StreamError(f"max_waiting is {max_waiting}", expected="at least 1, the number of frames that may wait")
