"""Recording of a bundle's stream, run the way users run it: every output of every graph, until the stream ends.

A graph that returns NaN ends the stream. That is a difference like any other: everything recorded before it is kept,
and the non-finite values are the last difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import NonFiniteError, SpecError
from engines.manifest import Manifest
from engines.memory import Array
from engines.spec import GRAPH_NAMES, VISION_GRAPHS
from engines.vision import VisionEncoder
from pvc_ref.preprocess import resize_frame

from ..graphs.models import LoadedModel
from .clip import QUESTION, Frame
from .evidence import Evidence
from .metrics import Difference
from .places import WHOLE_TEXT, Place, Rung
from .recorded_sessions import Calls, Recorder
from .recording import Frames, Progress, Recording, recording_of

NUM_NEW_TOKENS = 16
MIN_DECODED = 4
FAR_FRAME = 4096
"""A frame that a stream reaches after minutes. float16 does not represent all integers here, so a clock in a narrow
dtype would show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedStream:
    """A stream's outputs: vision calls for every frame, language calls for the frames that fit, and the answer.

    frames        the frames that went through all vision graphs
    num_frames    consecutive frames fed, including one on which a graph returned NaN
    vision        the outputs for `frames`
    pixels, fed   the clip's frames as the reference resizes them, and the frames that reached the trunk
    num_streamed  frames that the LLM received
    forced        tokens fed after an answer that was too short to show decoding
    stop          why the stream ended early: the runtime's error, and the non-finite outputs of the first such graph
    """

    frames: Frames
    num_frames: int
    vision: Recording
    pixels: list[Array]
    fed: list[Array]
    num_streamed: int
    language_calls: Calls
    tokens: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    stop: Evidence | None = None


def stream_clip(
    bundle: Bundle, clip: list[Frame], *, num_frames: int, progress: Progress = lambda _: None
) -> RecordedStream:
    """Push the first num_frames frames, ask, and let the clock jump. The vision side always sees the whole clip. With
    num_frames 0 only the vision side runs, and only its sessions must be open."""
    recorder = Recorder(bundle.sessions)
    total = len(clip) if bundle.manifest.time_mode == "fixed" else None
    # One clip under one clock, so that every frame has its counterpart; the runtime's tests cover re-anchors.
    shown = replace(bundle, sessions=recorder.sessions)
    pixels = [resize_frame(frame[..., ::-1], size=bundle.manifest.shape.image_size) for frame in clip]
    times = list(range(len(clip)))
    tokens, forced = tuple[int, ...](), tuple[int, ...]()
    stop: Evidence | None = None
    language_calls = recorder.calls
    try:
        if num_frames:
            stream = PVCStream(shown, total_frames=total, clock="run-on")
            for index, frame in enumerate(clip[:num_frames]):
                stream.push(frame)
                progress((index + 1) / num_frames)
            tokens = stream.ask(QUESTION, max_new_tokens=NUM_NEW_TOKENS, keep=True).token_ids
            forced = _decode_a_little_more(stream, tokens)
            encoder = stream.vision
        if num_frames < len(clip):  # the context is too short for the whole clip
            recorder.restart()
            encoder = VisionEncoder(recorder.sessions, time_divisor=total or 1)
            for image in pixels:
                encoder.commit(encoder.encode(image))
                progress(encoder.ring.num_frames / len(clip))
        if total is None:
            _jump(encoder, pixels, bundle, times)
    except NonFiniteError as error:
        stop = _early_end(recorder.calls, times, Rung("bundle", bundle.manifest.precision), error)
    calls = recorder.calls
    done, num_fed = len(times), len(clip)
    if stop is not None:
        done = len(calls["compressor"]) - any(found.graph == "compressor" for found in stop.differences)
        num_fed = min(len(calls["trunk"]), len(clip))
    return RecordedStream(
        frames=Frames(pixels=[*pixels, *pixels][:done], times=times[:done], total_frames=total),
        num_frames=num_fed,
        vision=recording_of({name: calls[name][:done] for name in VISION_GRAPHS}),
        pixels=pixels,
        fed=recorder.frames[:num_frames],
        num_streamed=num_frames,
        language_calls=language_calls,
        tokens=tokens,
        forced=forced,
        stop=stop,
    )


def _early_end(calls: Calls, times: list[int], rung: Rung, error: NonFiniteError) -> Evidence:
    """Evidence of the first graph that returned non-finite values. Raises the error if no such call was recorded."""
    for graph in GRAPH_NAMES:
        for index, outputs in enumerate(calls.get(graph, ())):
            where = _where(graph, index, times)
            found = [
                Difference(rung=rung, graph=graph, tensor=name, where=where, num_nonfinite=_num_nonfinite(array))
                for name, array in outputs.items()
                if _num_nonfinite(array)
            ]
            if found:
                return Evidence(differences=tuple(found), stopped=error.what)
    raise error


def _num_nonfinite(array: Array) -> int:
    return int((~np.isfinite(array)).sum())


def _where(graph: str, index: int, times: list[int]) -> Place:
    if graph in VISION_GRAPHS:
        return Place("frame", times[index])
    return {"embed": WHOLE_TEXT, "llm": Place("pass", index), "head": Place("token", index)}[graph]


def _decode_a_little_more(stream: PVCStream, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Feed tokens after a very short or empty answer, so that decoding is always compared."""
    forced = tuple(range(max(MIN_DECODED - len(tokens), 0)))
    for token in forced:
        stream.language.logits(stream.language.append(stream.language.embed([token])))
    return forced


def _jump(encoder: VisionEncoder, pixels: list[Array], bundle: Bundle, times: list[int]) -> None:
    """Let the clock run ahead to frames that a clip does not reach, and encode one there. The slots do not move.

    With a table of times, the last comparison uses one of the table's last rows.
    """
    ring, num_times = encoder.ring, bundle.manifest.limits.num_times
    for target in (bundle.manifest.trained_frames - 1, FAR_FRAME) if num_times is None else (num_times - 1,):
        if target > ring.num_frames:  # with few trained frames, the clip is already past the first target
            ahead = target - ring.num_frames
            ring.num_frames += (-(-ahead // ring.window) if num_times is None else ahead // ring.window) * ring.window
            image = pixels[len(times) - len(pixels)]
            times.append(ring.num_frames)
            encoder.commit(encoder.encode(image))


def frames_that_fit(
    manifest: Manifest, loaded: LoadedModel, num_frames: int, *, num_tokens: int = NUM_NEW_TOKENS
) -> int:
    """The number of frames that fit in the bundle's context with a question and an answer."""
    for count in range(num_frames, 0, -1):
        rows = len(loaded.prompt_ids(num_frames=count, question=QUESTION)) + num_tokens
        if rows <= manifest.limits.context:
            return count
    raise SpecError(
        f"the bundle's context of {manifest.limits.context} rows is too short for a check",
        expected=f"room for one frame, a question and an answer of {num_tokens} tokens",
        fix="export with a larger --context",
    )
