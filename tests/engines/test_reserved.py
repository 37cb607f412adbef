"""A question that might not fit is refused before a graph of the LLM runs, and the last row that fits is used.

On a whole-number model (exact.py). An answer may end early, so the requested length counts, not the actual one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import StreamFull
from engines.ingest import Ingest
from engines.memory import Array
from engines.session import Session, Wrapped
from engines.spec import CacheUpdate

from .doubles import with_sessions
from .exact import LIMITS, SHAPE, exact_bundle

FRAMES = list(np.random.default_rng(2).integers(0, 256, (3, SHAPE.image_size, SHAPE.image_size, 3), dtype=np.uint8))
QUESTION = "so?"
NUM_REPEATS = 2  # of an image, in exact_bundle
Call = Callable[[PVCStream, int, list[Array]], object]


def ask(stream: PVCStream, num_tokens: int, images: list[Array]) -> object:
    return stream.ask(QUESTION, images=images, max_new_tokens=num_tokens)


def keep(stream: PVCStream, num_tokens: int, images: list[Array]) -> object:
    return stream.ask(QUESTION, images=images, max_new_tokens=num_tokens, keep=True)


def score(stream: PVCStream, num_tokens: int, images: list[Array]) -> object:
    return stream.score(QUESTION, [7] * num_tokens, images=images)


class Counted(Wrapped):
    """A session that counts its runs."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, self._count)
        self.num_runs = 0

    def _count(self, session: Session, inputs: object) -> object:
        self.num_runs += 1
        return session.run(inputs)  # type: ignore[arg-type]


def rows_of_a_question(bundle: Bundle, stream: PVCStream, images: list[Array]) -> int:
    """Rows of the waiting text, of the images (as static videos of one tile), and of the question."""
    prompt, count = bundle.manifest.prompt, bundle.tokenizer.encode
    text = stream.context.pending + prompt.image_start * len(images) + prompt.frame_end() * len(images)
    in_frames = len(images) * NUM_REPEATS * SHAPE.num_frame_tokens
    return len(count(text + QUESTION + prompt.ask_suffix)) + in_frames


@pytest.mark.parametrize("num_images", [0, 1])
@pytest.mark.parametrize("call", [ask, keep, score], ids=lambda call: call.__name__)
@pytest.mark.parametrize("ingest", ["eager", "lazy"])
@pytest.mark.parametrize("cache_update", ["rows", "aliased"])
def test_the_last_row_that_fits_is_used_and_one_more_is_refused_before_anything_runs(
    cache_update: CacheUpdate, ingest: Ingest, call: Call, num_images: int, tmp_path: Path
) -> None:
    bundle = exact_bundle(tmp_path, cache_update=cache_update)
    llm, head = Counted(bundle.sessions["llm"]), Counted(bundle.sessions["head"])
    bundle = with_sessions(bundle, llm=llm, head=head)
    stream = PVCStream(bundle, clock="run-on", ingest=ingest)
    for frame in FRAMES:
        stream.push(frame)
    images = FRAMES[:num_images]
    room = LIMITS.context - stream.context_rows - rows_of_a_question(bundle, stream, images)
    assert room > 1 and (stream.num_waiting > 0) == (ingest == "lazy")
    before = llm.num_runs, head.num_runs, stream.context_rows, stream.num_waiting
    with pytest.raises(StreamFull):
        call(stream, room + 1, images)
    assert (llm.num_runs, head.num_runs, stream.context_rows, stream.num_waiting) == before
    call(stream, room, images)
    assert llm.num_runs > before[0]


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_a_frame_that_does_not_fit_is_refused_before_the_llm_runs(ingest: Ingest, tmp_path: Path) -> None:
    """Waiting frames have their rows reserved, although the LLM has not seen them."""
    bundle = exact_bundle(tmp_path)
    llm = Counted(bundle.sessions["llm"])
    stream = PVCStream(with_sessions(bundle, llm=llm), clock="run-on", ingest=ingest, max_waiting=64)
    with pytest.raises(StreamFull):
        while True:
            before = llm.num_runs, stream.context_rows, stream.num_frames
            stream.push(FRAMES[0])
    assert (llm.num_runs, stream.context_rows, stream.num_frames) == before
    assert before[1] <= LIMITS.context and before[2] > 3
