"""What the rules of a stream's state are tried on: a bundle, a clip both ways, and all that a stream is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engines import PVCStream
from engines.bundle import Bundle
from engines.memory import Array, Memory, Tensor
from engines.preprocess import to_model_frame
from engines.session import Around, Session, Wrapped

from ..clip import QUESTION, Frame, check_clip, real_frames

TOKENS = (1, 2)
Seen = dict[str, Array]
"""All that a stream is and would say: counts, ring, embeddings of a next frame, LLM cache, logits."""


class Broken(Exception):
    """A rule does not hold, and where."""


class NotExecuted(Exception):
    """Why a rule cannot be shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A bundle, a clip forwards and backwards, and what a stream of each alone becomes."""

    bundle: Bundle
    clip: Sequence[Frame]
    backwards: Sequence[Frame]
    alone: Seen
    alone_backwards: Seen
    folder: Path

    @staticmethod
    def of(bundle: Bundle, num_frames: int | None, folder: Path) -> Trial:
        clip = check_clip(_num_frames(bundle, num_frames))
        alone, alone_backwards = (
            seen_by(pushed(new_stream(bundle, len(clip)), some), bundle) for some in (clip, clip[::-1])
        )
        return Trial(
            bundle=bundle, clip=clip, backwards=clip[::-1], alone=alone, alone_backwards=alone_backwards, folder=folder
        )

    def seen(self, stream: PVCStream) -> Seen:
        return seen_by(stream, self.bundle)

    def stream(self, bundle: Bundle | None = None) -> PVCStream:
        return new_stream(bundle or self.bundle, len(self.clip))

    @property
    def middle(self) -> int:
        """Where a stream is cut in two."""
        return (len(self.clip) + 1) // 2


def _num_frames(bundle: Bundle, wanted: int | None) -> int:
    """As many as are wanted and fit in the context, with a question that is kept and one that is scored."""
    count = wanted or bundle.manifest.limits.window + 1
    rows_needed = new_stream(bundle, count).rows_needed
    while count > 1 and rows_needed(count, question=3 * QUESTION, max_new_tokens=8) > bundle.manifest.limits.context:
        count -= 1
    return count


def new_stream(bundle: Bundle, num_frames: int) -> PVCStream:
    """One clock for every time mode; with fixed time there is one frame more to look at."""
    total = num_frames + 1 if bundle.manifest.time_mode == "fixed" else None
    return PVCStream(bundle, total_frames=total, clock="run-on")


def pushed(stream: PVCStream, frames: Sequence[Frame]) -> PVCStream:
    for frame in frames:
        stream.push(frame)
    return stream


def seen_by(stream: PVCStream, bundle: Bundle) -> Seen:
    """All of a stream that is compared, each array a copy, in the order in which a frame passes through. The stream
    stays as it is."""
    frame = to_model_frame(real_frames()[-1], size=bundle.manifest.shape.image_size)
    counts = {"num_frames": np.array(stream.num_frames), "context_rows": np.array(stream.context_rows)}
    rings = {f"temporal/{name}": ring.copy() for name, ring in stream.vision.ring.dump().items()}
    embeds = stream.vision.encode(frame).frame_embeds.copy()
    rows = {f"llm/{name}": array.copy() for name, array in stream.language.cache.dump().items()}
    return counts | rings | {"frame_embeds": embeds} | rows | {"logits": stream.score(QUESTION, TOKENS)}


def tapped(bundle: Bundle, around: Around) -> Bundle:
    return replace(bundle, sessions={name: Wrapped(session, around) for name, session in bundle.sessions.items()})


def copied(tensors: Mapping[str, Tensor], memory: Memory) -> dict[str, Array]:
    return {name: memory.to_host(tensor).copy() for name, tensor in tensors.items()}


def run_on_copies(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """On copies: a graph may update its caches in place."""
    return copied(session.run({name: array.copy() for name, array in feeds.items()}), session.memory)


def require_same(got: Seen, want: Seen, where: str = "") -> None:
    """Raise Broken at the first tensor that is not the same bit for bit, and say how far off it is."""
    if list(got) != list(want):
        raise Broken(f"{where}the tensors are {', '.join(got)}, expected {', '.join(want)}")
    for name, expected in want.items():
        if (said := unlike(got[name], expected)) is not None:
            raise Broken(f"{where}{name}{said}")


def unlike(got: Array, want: Array) -> str | None:
    """How two arrays differ, in words that go on after a name; None if they are the same bit for bit."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f" is {got.dtype} {got.shape}, expected {want.dtype} {want.shape}"
    if got.tobytes() == want.tobytes():
        return None
    if not got.shape:
        return f" is {got}, expected {want}"
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    count = int(np.count_nonzero(error))  # NaN counts; zeros of two signs do not
    return f": {count} of {error.size} values differ, by {error.max():.2g} at most"
