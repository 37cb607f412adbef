"""Test bed for the state rules: a bundle, a clip in both directions, and the full state of a stream."""

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
"""A stream's state and its next outputs: counts, ring, embeddings of a next frame, LLM cache, logits."""


class Broken(Exception):
    """A rule does not hold. The message says where."""


class NotExecuted(Exception):
    """A rule cannot run here. The message is the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A bundle, a clip forwards and backwards, and the state of a single stream after each."""

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
        """The frame at which a stream is split."""
        return (len(self.clip) + 1) // 2


def _num_frames(bundle: Bundle, wanted: int | None) -> int:
    """The number of frames that is wanted, or fewer if they do not fit in the context with one kept question and one
    scored question."""
    count = wanted or bundle.manifest.limits.window + 1
    rows_needed = new_stream(bundle, count).rows_needed
    while count > 1 and rows_needed(count, question=3 * QUESTION, max_new_tokens=8) > bundle.manifest.limits.context:
        count -= 1
    return count


def new_stream(bundle: Bundle, num_frames: int) -> PVCStream:
    """Open a stream. With a fixed clock, its length leaves room for one more frame."""
    total = num_frames + 1 if bundle.manifest.time_mode == "fixed" else None
    return PVCStream(bundle, total_frames=total, clock="run-on")


def pushed(stream: PVCStream, frames: Sequence[Frame]) -> PVCStream:
    for frame in frames:
        stream.push(frame)
    return stream


def seen_by(stream: PVCStream, bundle: Bundle) -> Seen:
    """Copies of every compared part of a stream, in the order in which a frame passes through. The stream does not
    change."""
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
    """Run on copies of the inputs, because a graph may update its caches in place."""
    return copied(session.run({name: array.copy() for name, array in feeds.items()}), session.memory)


def require_same(got: Seen, want: Seen, where: str = "") -> None:
    """Raise Broken for the first tensor that is not bit-equal, with its difference."""
    if list(got) != list(want):
        raise Broken(f"{where}the tensors are {', '.join(got)}, expected {', '.join(want)}")
    for name, expected in want.items():
        if (said := unlike(got[name], expected)) is not None:
            raise Broken(f"{where}{name}{said}")


def unlike(got: Array, want: Array) -> str | None:
    """Describe the difference of two arrays, to be appended to a name; None if they are bit-equal."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f" is {got.dtype} {got.shape}, expected {want.dtype} {want.shape}"
    if got.tobytes() == want.tobytes():
        return None
    if not got.shape:
        return f" is {got}, expected {want}"
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    count = int(np.count_nonzero(error))  # NaN counts; zeros of two signs do not
    return f": {count} of {error.size} values differ, by at most {error.max():.2g}"
