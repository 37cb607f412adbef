"""What a stream hands back: an answer, and what a frame cost."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN_TOKENS = 3
"""Where an answer is decided: what follows mostly completes words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTiming:
    """Milliseconds of one pushed frame: resize, vision graphs, LLM ingest, and getting the next anchor ready."""

    preprocess_ms: float
    vision_ms: float
    ingest_ms: float
    prepare_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model said, and what it cost. `finished` is false when max_new_tokens cut it short.

    token_ids   also those of a text that ended it, which `text` does not have
    vision_ms   reading the question and encoding its images; 0 without any
    prefill_ms  up to the first token's logits: frames that waited, question and images through the LLM
    decode_ms   all tokens after that
    num_prompt_rows, num_frames  context rows that it could see when it began, and frames the stream had then, those
                that a re-anchor forgot included
    margin      how sure it was: the least lead, in logits, of the likeliest token over the next one, at the first
                MARGIN_TOKENS that it chose, the end among them
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    margin: float
    num_prompt_rows: int = 0
    num_frames: int = 0
