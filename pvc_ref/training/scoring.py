"""Word-for-word grading of answers.

The right answer is teacher-forced, and each of its tokens must be the likeliest after those before it. This holds
exactly when greedy decoding gives the whole answer, at a fraction of the time (a test checks that they agree).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from ..model import PVC
from ..shapes import Clip, Question
from ..shapes.draw import IGNORED
from .batches import collate
from .objective import answer_logits, context_token_id, encode

CHUNK = 16
Asked = tuple[Clip, list[Question]]
"""A clip and the questions to ask about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """One question about one clip, and whether the model answered it right."""

    question: Question
    is_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The way clips are shown to a model.

    num_repeats  how often an image is repeated; ignored for videos
    window       frames that temporal attention sees, including the current one; None means all
    last_only    the LLM gets the last frame's tokens only
    first_time   time of a clip's first frame, for a stream that has run for a while
    num_seen     how many of the last frames the LLM gets, as Frame1, Frame2, ...; None means all
    """

    num_repeats: int = 1
    window: int | None = None
    last_only: bool = False
    first_time: int = 0
    num_seen: int | None = None


@torch.no_grad()
def grade(
    model: PVC,
    tokenizer: Tokenizer,
    clips: Iterable[Clip],
    *,
    view: View,
    keep: Callable[[Question], bool] = lambda _: True,
) -> list[Graded]:
    """Ask the questions about each clip for which `keep` returns true. Clips may differ in length."""
    by_length: dict[int, list[Asked]] = {}
    for clip in clips:
        if asked := [question for question in clip.questions if keep(question)]:
            by_length.setdefault(len(clip.frames), []).append((clip, asked))
    found: list[Graded] = []
    for group in by_length.values():
        for start in range(0, len(group), CHUNK):
            found += _grade_chunk(model, tokenizer, group[start : start + CHUNK], view)
    return found


def _grade_chunk(model: PVC, tokenizer: Tokenizer, group: Sequence[Asked], view: View) -> list[Graded]:
    clips, asked = [clip for clip, _ in group], [some for _, some in group]
    batch = collate(
        model.config,
        tokenizer,
        clips,
        asked,
        repeats=view.num_repeats if len(clips[0].frames) == 1 else 1,
        window=view.window,
        last_only=view.last_only,
        num_seen=view.num_seen,
    )
    _, tokens = encode(model, batch, first_time=view.first_time)
    if view.num_seen is not None:
        tokens = tokens[:, -view.num_seen :]
    logits = answer_logits(model, batch, tokens, context_token_id(tokenizer))
    right = ((logits.argmax(-1) == batch.targets) | (batch.targets == IGNORED)).all(-1).tolist()
    return [
        Graded(question=question, is_right=is_right)
        for some, row in zip(asked, right, strict=True)
        for question, is_right in zip(some, row, strict=False)
    ]
