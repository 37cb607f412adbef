"""Results of a stream: an answer, and the time a frame took."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN_TOKENS = 3
"""The first tokens decide an answer; later ones mostly complete words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTiming:
    """Milliseconds of one pushed frame: resize, vision graphs, LLM ingest, and preparing the next anchor."""

    preprocess_ms: float
    vision_ms: float
    ingest_ms: float
    prepare_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The model's answer and its cost. `finished` is false when max_new_tokens cut it short.

    token_ids   all tokens, including those of a stop text, which `text` leaves out
    vision_ms   reading the question and encoding its images; 0 without any
    prefill_ms  up to the first token's logits: waiting frames, question and images through the LLM
    decode_ms   all tokens after that
    num_prompt_rows, num_frames  context rows visible when it began; frames in the stream by then, including those that
                a re-anchor dropped
    margin      the model's certainty: the smallest lead, in logits, of the likeliest token over the next one, over the
                first MARGIN_TOKENS chosen tokens, including the end token
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
