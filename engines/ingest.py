"""When the LLM takes in what the vision side saw: at once, or when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .memory import Array

Ingest = Literal["eager", "lazy"]
"""When the LLM takes in a frame.

eager  at once: an answer waits for nothing
lazy   with the next question, or when `max_waiting` frames wait: several frames share one pass over the LLM's weights,
       and a stream that is never asked costs its vision side only. Nothing is dropped, but for a frame that turns out
       to be one the LLM overflows on: the call that finds it raises NonFiniteError and drops that frame alone
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingFrame:
    """A frame that the LLM has not taken in yet: its rows (L, E), text included, and what the text was made of.

    pending  text of the conversation that waited before it
    index    as the prompt counts frames, from 1; a re-anchor starts anew
    """

    rows: Array
    pending: str
    index: int
