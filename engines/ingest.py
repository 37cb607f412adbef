"""When the LLM takes in what the vision side saw: at once, or when somebody asks."""

from __future__ import annotations

from typing import Literal

Ingest = Literal["eager", "lazy"]
"""When the LLM takes in a frame.

eager  at once: an answer waits for nothing
lazy   with the next question, or when `max_waiting` frames wait: several frames share one pass over the LLM's weights,
       and a stream that is never asked costs its vision side only. Nothing is dropped but a frame that turns out to
       overflow the LLM: the call that finds it raises NonFiniteError and drops that frame alone
"""
