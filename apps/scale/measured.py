"""Wall-clock measurements: the service times of one stream, and a load on the real scheduler."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from engines.bundle import Bundle
from engines.errors import StreamError
from engines.many.handle import QueueLimits
from engines.many.scheduler import OneByOne, Scheduler
from engines.memory import Array
from engines.stream import PVCStream
from engines.synthetic import render_clip

from ..serving.endless import endless
from .load import Load, Outcome
from .simulation import MAX_NEW_TOKENS, QUESTION, ServiceTimes, hand_over

NUM_FRAMES, NUM_ANSWERS, NUM_WARM = 64, 8, 12
SHUTDOWN_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A stream's snapshot file: its size, and seconds to save it and to resume from it."""

    num_bytes: int
    save: float
    open: float


def options_of(bundle: Bundle) -> dict[str, Any]:
    """Options of a stream without an end that can be asked QUESTION at any time.

    Raises StreamError for a model that cannot re-anchor: it has no steady state to measure.
    """
    rows = len(bundle.tokenizer.encode(QUESTION + bundle.manifest.prompt.ask_suffix)) + MAX_NEW_TOKENS
    try:
        return endless(bundle, reserve=2 * rows)
    except StreamError as error:
        raise StreamError(
            f"this bundle's streams cannot run without an end: {error.what}", expected="a model that can re-anchor",
            cause=error.cause, fix="simulate it with known service times: --times FILE",
        ) from error  # fmt: skip


def clip(*, width: int = 640, height: int = 480) -> list[Array]:
    """Frames of a camera's size, (H, W, 3) uint8 BGR."""
    return list(render_clip(32, seed=1, width=width, height=height))


def measure(bundle: Bundle, frames: Sequence[Array]) -> ServiceTimes:
    """Service times of a single stream, once its ring is full and it re-anchors. Raises what options_of does."""
    stream = PVCStream(bundle, **options_of(bundle))
    feed = cycle(frames)
    for frame in islice(feed, NUM_WARM + bundle.manifest.trained_frames):
        stream.push(frame)
    pushed, ingested, begun, tokens, counts, saved = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(NUM_FRAMES):
            seconds, timing = _timed(partial(stream.push, next(feed)))
            pushed.append(seconds)
            ingested.append(timing.ingest_ms / 1e3)
            if index % (NUM_FRAMES // NUM_ANSWERS):
                continue
            seconds, answering = _timed(lambda: stream.begin(QUESTION, max_new_tokens=MAX_NEW_TOKENS))
            begun.append(seconds)
            steps = 0
            while answering.answer is None:
                tokens.append(_timed(answering.step)[0])
                steps += 1
            counts.append(steps)
            saved.append(_timed(lambda: stream.save(Path(folder) / "stream.npz"))[0])
    return ServiceTimes(
        frame=tuple(pushed), ingest=sorted(ingested)[len(ingested) // 2], begin=tuple(begun), token=tuple(tokens),
        tokens=tuple(counts), save=tuple(saved),
        anchor=bundle.manifest.trained_frames - stream.episodes.num_retained,
    )  # fmt: skip


def measure_snapshot(bundle: Bundle, frames: Sequence[Array]) -> Snapshot:
    """Measure a snapshot of a stream whose caches are as full as they get between anchors, in a temporary folder."""
    stream = PVCStream(bundle, **options_of(bundle))
    for frame in islice(cycle(frames), NUM_WARM + bundle.manifest.trained_frames):
        stream.push(frame)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.npz"
        saves = [_timed(partial(stream.save, path))[0] for _ in range(5)]
        opens = [_timed(partial(PVCStream.open, path, bundle))[0] for _ in range(5)]
        return Snapshot(num_bytes=path.stat().st_size, save=sorted(saves)[2], open=sorted(opens)[2])


def run(bundle: Bundle, load: Load, frames: Sequence[Array], limits: QueueLimits | None = None) -> Outcome:
    """Run the load on a Scheduler as the simulation does: frames arrive when due, whether or not they are taken.

    Raises what options_of does. Errors of streams are counted in `failed`.
    """
    outcome, options, lock = Outcome(cameras=load.cameras), options_of(bundle), threading.Lock()
    scheduler = Scheduler(OneByOne(bundle=bundle), max_streams=load.cameras)
    try:
        handles = [scheduler.open(limits=limits or QueueLimits(), **options) for _ in range(load.cameras)]
        for handle in handles:  # warm up: work that a stream does only once
            for frame in islice(cycle(frames), NUM_WARM + bundle.manifest.trained_frames):
                handle.push(frame).result()
        before, feed = [handle.num_frames for handle in handles], cycle(frames)
        busy, tokens = scheduler.counts.busy_s, scheduler.counts.tokens
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()

            def now(take: Callable[[float], None]) -> None:
                with lock:
                    take(time.monotonic() - began)

            for arrival in load.arrivals():
                if (left := began + arrival.at_s - time.monotonic()) > 0:
                    time.sleep(left)
                save = partial(PVCStream.save, path=Path(folder) / f"{arrival.camera}.npz")
                hand_over(
                    handles[arrival.camera], arrival, outcome, now=now, at=time.monotonic() - began, frame=next(feed),
                    save=save,
                )  # fmt: skip
            if (left := began + load.seconds - time.monotonic()) > 0:
                time.sleep(left)
            for handle in handles:
                while handle.num_waiting and time.monotonic() < began + load.seconds + SHUTDOWN_S:
                    time.sleep(0.005)
            outcome.elapsed = time.monotonic() - began
        seen = [handle.num_frames for handle in handles]  # closing a stream empties it
        outcome.by_camera = [now - then for now, then in zip(seen, before, strict=True)]
    finally:
        scheduler.close(drain_s=SHUTDOWN_S)
    outcome.tokens = scheduler.counts.tokens - tokens
    outcome.busy = scheduler.counts.busy_s - busy
    outcome.dropped = sum(handle.num_dropped for handle in handles)
    return outcome


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result
