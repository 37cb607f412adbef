"""A question as rows of embeddings: earlier turns, its text, and its images in their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bundle import Bundle
from .context import Context
from .images import ImageEncoder
from .memory import Array
from .prompt import Turn


def question_rows(
    bundle: Bundle,
    context: Context,
    encoder: ImageEncoder,
    question: str,
    images: Sequence[Array],
    earlier: Sequence[Turn],
    max_tiles: int | None,
    num_reserved: int,
) -> Array:
    """Embeddings (L, E) of everything after the frames of `context`, up to the start of the answer.

    earlier  turns of the same conversation, oldest first, that are not in the context
    Raises StreamFull, before anything runs, unless `num_reserved` more rows fit after them; StreamError for a special
    token of the conversation in any text, and if a text does not have one <image> per image.
    """
    tokenizer, spec = bundle.tokenizer, bundle.manifest.prompt
    for text in (question, *(text for turn in earlier for text in (turn.question, turn.answer))):
        tokenizer.refuse_special_tokens(text)
    pieces = spec.conversation(earlier, question, len(images))
    images = [*(image for turn in earlier for image in turn.images), *images]
    starts = [context.pending, *(spec.image_end for _ in images)]
    ends = [*(spec.image_start for _ in images), spec.ask_suffix]
    ids = [tokenizer.encode(a + piece + b) for a, piece, b in zip(starts, pieces, ends, strict=True)]
    num_rows = sum(encoder.num_rows(image, max_tiles=max_tiles) for image in images) + sum(map(len, ids))
    context.reserve(num_rows + num_reserved)
    rows = [context.language.embed(ids[0])]
    for image, after in zip(images, ids[1:], strict=True):
        rows += [encoder.encode(image, max_tiles=max_tiles), context.language.embed(after)]
    return np.concatenate(rows)
