"""Forked streams: each continues as if it were alone, bit for bit, and costs as much as documented.

On a whole-number model (exact.py), with both updates of the LLM's cache and both layouts of the ring, on the host and
on a fake GPU.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import PVCStream, open_stream
from engines.bundle import Bundle
from engines.errors import BackendUnavailable, StreamError
from engines.fake import RecordingCuda
from engines.memory import Array, DeviceMemory, HostMemory

from .exact import LIMITS, SHAPE, exact_bundle

TRAINED, W = 5, LIMITS.window
QUESTION = "what?"
FRAMES = list(np.random.default_rng(5).integers(0, 256, (12, SHAPE.image_size, SHAPE.image_size, 3), dtype=np.uint8))
STREAMS: dict[str, dict[str, Any]] = {
    "eager": {"clock": "run-on"},
    "lazy": {"clock": "run-on", "ingest": "lazy", "max_waiting": 2},
    "reanchor": {"clock": "reanchor", "retain": 2},
    "reanchor lazy": {"clock": "reanchor", "retain": 3, "ingest": "lazy"},
}
ON_HOST = ("rows concat host", "aliased split host")
ON_GPU = ("rows split gpu", "aliased concat gpu")


@pytest.fixture(params=[*ON_HOST, *ON_GPU])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return bundle_of(request.param, tmp_path)


def bundle_of(name: str, folder: Path) -> Bundle:
    update, spelling, place = name.split()
    memory = DeviceMemory(RecordingCuda()) if place == "gpu" else HostMemory()
    options: Any = {"trained_frames": TRAINED, "limits": replace(LIMITS, context=160)}
    return exact_bundle(folder, cache_update=update, spelling=spelling, memory=memory, **options)  # type: ignore[arg-type]


def pushed(stream: PVCStream, frames: list[Array]) -> PVCStream:
    for frame in frames:
        stream.push(frame)
    return stream


def state_of(stream: PVCStream) -> dict[str, Any]:
    """The whole state of a stream, with every cache whole, except the spare ring, which is not read before a reset."""
    memory, cache = stream.vision._memory, stream.language.cache
    return {
        "counts": (stream.num_frames, stream.num_context_frames, stream.num_anchors, stream.context_rows),
        "made with": stream._standing().options,
        "pending": stream.context.pending,
        "waiting": [(frame.rows.tobytes(), frame.pending, frame.index) for frame in stream.context.waiting],
        "ring": {name: ring.tobytes() for name, ring in stream.vision.ring.dump().items()},
        "retained": {name: kept.tobytes() for name, kept in stream.episodes.retained.dump().items()},
        "language": {name: memory.to_host(whole).tobytes() for name, whole in cache._caches.items()},
    }


def said_by(stream: PVCStream) -> list[Any]:
    """The embeddings of a next frame, a kept answer, and the logits of another question after it."""
    embeds = stream.vision.encode(FRAMES[0]).frame_embeds.tobytes()
    answer = stream.ask(QUESTION, max_new_tokens=4, keep=True)
    return [embeds, answer.token_ids, answer.finished, stream.score("and now?", [3, 4]).tobytes()]


@pytest.mark.parametrize("num_frames", [0, 1, W, W + 1, TRAINED + 1, 2 * TRAINED - 2], ids=lambda n: f"T={n}")
@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
def test_a_fork_is_its_parent_now_and_at_every_step_that_both_take(
    bundle: Bundle, options: dict[str, Any], num_frames: int
) -> None:
    parent = pushed(PVCStream(bundle, **options), FRAMES[: num_frames // 2])
    parent.ask("before?", max_new_tokens=2, keep=True)
    pushed(parent, FRAMES[num_frames // 2 : num_frames])
    before = state_of(parent)
    fork = parent.fork()
    assert state_of(fork) == state_of(parent) == before
    assert fork.context is not parent.context
    for frame in FRAMES[num_frames : num_frames + 2]:
        fork.push(frame)
        parent.push(frame)
        assert state_of(fork) == state_of(parent)
    assert said_by(fork) == said_by(parent)


@pytest.mark.parametrize("num_frames", [1, TRAINED + 1])
@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("first", ["fork", "parent"])
def test_neither_changes_the_other(bundle: Bundle, options: dict[str, Any], num_frames: int, first: str) -> None:
    """Each equals a stream that was alone all the time, through a re-anchor, kept questions and a reset."""
    parent = pushed(PVCStream(bundle, **options), FRAMES[:num_frames])
    fork = parent.fork()
    moving, still = (fork, parent) if first == "fork" else (parent, fork)
    before = state_of(still)
    pushed(moving, FRAMES[6:9])
    moving.ask(QUESTION, max_new_tokens=3, keep=True)
    assert state_of(still) == before
    alone = pushed(PVCStream(bundle, **options), [*FRAMES[:num_frames], *FRAMES[6:9]])
    alone.ask(QUESTION, max_new_tokens=3, keep=True)
    assert state_of(moving) == state_of(alone)
    moving.reset()
    assert state_of(still) == before
    twin = pushed(PVCStream(bundle, **options), [*FRAMES[:num_frames], FRAMES[10]])
    still.push(FRAMES[10])
    assert state_of(still) == state_of(twin) and said_by(still) == said_by(twin)


@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
def test_a_fork_of_a_fork_needs_neither_of_them(bundle: Bundle, options: dict[str, Any]) -> None:
    parent = pushed(PVCStream(bundle, **options), FRAMES[:2])
    child = pushed(parent.fork(), FRAMES[2:4])
    grandchild = child.fork()
    pushed(parent, FRAMES[8:10])
    child.reset()
    del parent, child
    gc.collect()
    pushed(grandchild, FRAMES[4:7])
    alone = pushed(PVCStream(bundle, **options), FRAMES[:7])
    assert state_of(grandchild) == state_of(alone) and said_by(grandchild) == said_by(alone)


def test_what_waits_is_taken_in_by_each_for_itself(bundle: Bundle) -> None:
    parent = pushed(PVCStream(bundle, ingest="lazy", max_waiting=4), FRAMES[:3])
    fork = parent.fork()
    said = said_by(fork)
    assert (fork.num_waiting, parent.num_waiting) == (0, 3) and parent.language.cache.length == 0
    assert said_by(parent) == said
    assert state_of(parent) == state_of(fork)


def test_frames_that_waited_for_an_answer_are_forked_as_well(bundle: Bundle) -> None:
    """An eager stream takes them in a few at a time, so that no frame has to wait for all of them."""
    parent = PVCStream(bundle, clock="run-on")
    answering = parent.begin("before?", max_new_tokens=1)
    pushed(parent, FRAMES[:4])
    with pytest.raises(StreamError, match="a question is being answered"):
        parent.fork()
    answering.step()
    fork = parent.fork()
    waited = []
    for frame in FRAMES[4:7]:
        waited.append(fork.num_waiting)
        for each in (fork, parent):
            each.push(frame)
        assert state_of(fork) == state_of(parent)
    assert [*waited, fork.num_waiting] == [4, 3, 2, 0]


def test_a_fork_is_saved_and_opened_as_any_stream(bundle: Bundle, tmp_path: Path) -> None:
    fork = pushed(PVCStream(bundle, **STREAMS["reanchor lazy"]), FRAMES[: TRAINED + 1]).fork()
    fork.save(tmp_path / "s.npz")
    opened = open_stream(tmp_path / "s.npz", bundle)
    assert state_of(opened) == state_of(fork) and said_by(opened) == said_by(fork)


def test_a_clip_of_fixed_length_is_forked_with_its_length(tmp_path: Path) -> None:
    bundle = exact_bundle(tmp_path)
    fixed = replace(bundle, manifest=replace(bundle.manifest, time_mode="fixed"))
    fork = pushed(PVCStream(fixed, total_frames=2), FRAMES[:1]).fork()
    fork.push(FRAMES[1])
    with pytest.raises(StreamError, match="all 2 frames of this stream have been pushed"):
        fork.push(FRAMES[2])


@pytest.mark.parametrize("nth", [1, 5, 9, 15, -1, -5, -11], ids=lambda n: f"call {n}")
@pytest.mark.parametrize("name", [*ON_HOST, *ON_GPU])
def test_a_fork_that_finds_no_memory_leaves_its_parent_as_it_was(
    name: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its nth allocation of 15, or (negative) at its nth copy of 11. The fork's memory is released."""
    bundle = bundle_of(name, tmp_path)
    parent = pushed(PVCStream(bundle, **STREAMS["reanchor lazy"]), FRAMES[: TRAINED + 1])
    memory: Any = bundle.sessions["llm"].memory
    before, allocated = state_of(parent), num_allocated(memory)
    error = BackendUnavailable if name in ON_GPU else MemoryError
    method, calls = ("zeros" if nth > 0 else "copy"), [0]
    original = getattr(type(memory), method)

    def limited(self: Any, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == abs(nth):
            raise error("no memory is left")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), method, limited)
        with pytest.raises(error, match="no memory is left"):
            parent.fork()
    gc.collect()
    assert state_of(parent) == before and num_allocated(memory) == allocated
    fork = parent.fork()
    assert state_of(fork) == before and said_by(fork) == said_by(parent)


def num_allocated(memory: Any) -> int:
    return memory.cuda.allocated() if isinstance(memory, DeviceMemory) else 0


@pytest.mark.parametrize("num_frames", [0, 1, 2 * W])
@pytest.mark.parametrize("retain", [0, 2])
def test_a_fork_copies_the_rows_in_use_and_on_a_gpu_moves_nothing_to_the_host(
    bundle: Bundle, num_frames: int, retain: int
) -> None:
    options = {"clock": "reanchor", "retain": retain} if retain else {"clock": "run-on"}
    manifest = replace(bundle.manifest, trained_frames=96)
    parent = pushed(PVCStream(replace(bundle, manifest=manifest), **options), FRAMES[:num_frames])  # type: ignore[arg-type]
    memory: Any = bundle.sessions["llm"].memory
    memory.traffic.clear()
    fork = parent.fork()
    ring, llm = (sum(s.row_bytes for s in manifest.graphs[name].states) for name in ("temporal", "llm"))
    features = 4 * SHAPE.num_positions * SHAPE.vision_width
    expected = min(num_frames, W) * ring + parent.context_rows * llm + (retain and retain + 1) * features
    traffic = memory.traffic
    assert (traffic.state, traffic.upload, traffic.download, traffic.syncs) == (expected, 0, 0, 0)
    assert state_of(fork) == state_of(parent)
