"""What a stream hands back: an answer, and what a frame cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTiming:
    """Milliseconds of one pushed frame: resize, vision graphs, LLM ingest."""

    preprocess_ms: float
    vision_ms: float
    ingest_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model said, and what it cost. `finished` is false when max_new_tokens cut it short.

    vision_ms   reading the question and encoding its images; 0 without any
    prefill_ms  up to the first token's logits: frames that waited, question and images through the LLM
    decode_ms   all tokens after that
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    vision_ms: float
    prefill_ms: float
    decode_ms: float
