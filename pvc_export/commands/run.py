"""`pvc-export run`: streams a video file through a bundle, or shows it images, and asks a question; optionally compares
the answer with the reference's.

Streaming needs neither torch nor model code; only `compare_with_reference` does.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from engines import Answer, PushTiming, PVCStream, open_bundle
from engines.bundle import ON_CPU, Bundle, Runtime, missing_files
from engines.clock import Clock
from engines.errors import MediaError, ParityError
from engines.ingest import Ingest
from engines.picture_sequences import PictureSequence, is_picture_sequence, open_picture_sequence
from engines.pictures import Picture, read_picture
from engines.sizes import resident_bytes
from engines.stillness import Stillness
from engines.terminal import print_json, printable
from engines.video import Damage, VideoInfo, VideoReader, is_url, probe_video, without_password

from ..archive.answering import open_stream
from ..parity.clip import Frame
from ..terminal.console import Console, size_text

DEFAULT_QUESTION = "What happens in this video?"
DEFAULT_IMAGE_QUESTION = "Describe what you see."
DEFAULT_FRAMES = 16
WARM_FRAMES = 50
"""Frame at which memory is first measured, if the video is long enough: by then every buffer has been used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """The input and the question: a video or images, or neither for a question without pictures.

    ask               the question; None: a general one
    video             a file, an http(s) address, or pictures: a folder, a pattern such as frames/%03d.png, or an
                      animated picture
    fps               frame rate of a raw stream without timestamps, such as a .h264 file, or of a folder or pattern;
                      for those two, None means engines.picture_sequences.DEFAULT_FPS
    frames            number of frames sampled evenly in time from the video, by default 16; 0 takes every frame
    tiles, ingest, clock, runtime, trust_engines, threads   as for PVCStream and open_bundle
    keep_frames       keep every pushed frame, for compare_with_reference
    Raises ValueError, naming the command line's options, for values that contradict each other.
    """

    bundle: Path
    ask: str | None = None
    video: str | Path | None = None
    images: tuple[Path, ...] = ()
    fps: float | None = None
    frames: int | None = None
    max_new_tokens: int = 32
    tiles: int | None = None
    ingest: Ingest = "eager"
    clock: Clock | None = None
    runtime: Runtime = "auto"
    trust_engines: bool = False
    threads: int | None = None
    keep_frames: bool = False

    def __post_init__(self) -> None:
        if self.video is not None and self.images:
            raise ValueError("--video and --image contradict each other; give one")
        if self.video is None and not self.images and self.ask is None:
            raise ValueError("nothing to look at and no question; give --video, --image or --ask")
        if self.clock is not None and self.video is None:
            raise ValueError("--clock needs --video: only a video has frame times")
        if self.fps is not None and self.video is None:
            raise ValueError("--fps needs --video")
        if (self.frames is not None and self.video is None) or (self.tiles is not None and not self.images):
            raise ValueError("--frames needs --video, and --tiles needs --image")

    @property
    def question(self) -> str:
        return self.ask if self.ask is not None else DEFAULT_IMAGE_QUESTION if self.images else DEFAULT_QUESTION


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A request, the streamed or shown input, the answer, and the cost.

    notices                remarks on how the files were read
    frames                 if frames were kept: those that the question covers, all since the last re-anchor
    damage                 the missing frames of the video; None if there are none
    stillness              whether the video was black or unchanged for long
    warm_bytes, end_bytes  resident memory after frame WARM_FRAMES (None for a shorter video), and after the last frame
    """

    request: RunRequest
    bundle: Bundle
    video: VideoInfo | None
    notices: tuple[str, ...]
    frames: tuple[Frame, ...]
    images: tuple[Frame, ...]
    timings: tuple[PushTiming, ...]
    answer: Answer
    context_rows: int
    warm_bytes: int | None
    end_bytes: int | None
    num_anchors: int = 0
    damage: Damage | None = None
    stillness: Stillness = field(default_factory=Stillness)

    def median_ms(self) -> dict[str, float]:
        """Median milliseconds per frame and stage, without the first frame, which warms up. Empty without frames."""
        timings = [asdict(timing) for timing in self.timings[1:] or self.timings]
        return {name: round(median(timing[name] for timing in timings), 3) for name in (timings or [{}])[0]}

    def slowest_ms(self) -> float:
        """95th percentile of the total milliseconds per frame, without the first frame."""
        totals: list[float] = [sum(asdict(timing).values()) for timing in self.timings[1:] or self.timings]
        return quantiles(totals, n=20, method="inclusive")[-1] if len(totals) > 1 else sum(totals)

    def token_ms(self) -> float | None:
        """Milliseconds per token after the first."""
        count = len(self.answer.token_ids)
        return self.answer.decode_ms / count if count else None


def run(request: RunRequest, console: Console) -> RunResult:
    """Stream the video or read the images, and ask.

    Raises MediaError, BundleError, and StreamFull before the first frame if the context cannot hold everything.
    """
    sequence = None
    if request.video is not None and is_picture_sequence(request.video):
        sequence = open_picture_sequence(request.video, fps=request.fps)
    info = sequence.info if sequence else _probe(request) if request.video else None
    pictures = [read_picture(path) for path in request.images]
    images = tuple(picture.bgr for picture in pictures)
    bundle = _open_bundle(request, console)
    num_frames = DEFAULT_FRAMES if request.frames is None else request.frames
    times_s = info.sample_times(num_frames) if info and num_frames else None
    count = 0 if info is None else info.num_frames if times_s is None else len(times_s)
    stream = _open_stream(bundle, request, count)
    frames: list[Frame] = []
    timings: list[PushTiming] = []
    warm_bytes, damage, stillness = None, None, Stillness()
    if request.video is not None:
        with (
            console.stage(f"stream {count} frames") as (stage, report),
            nullcontext(sequence) if sequence else VideoReader(request.video, fps=request.fps) as reader,
        ):
            for frame in reader.frames() if times_s is None else reader.shown_at(times_s):
                timings.append(stream.push(frame.bgr))
                stillness.add(frame.bgr, frame.time_s)
                if request.keep_frames:
                    frames.append(frame.bgr)
                if len(timings) == WARM_FRAMES:
                    warm_bytes = resident_bytes()
                report(min(len(timings) / count, 1))
            damage = reader.damage
            anchors = f", re-anchored {stream.num_anchors} times" if stream.num_anchors else ""
            stage.note = f"{stream.context_rows} of {bundle.manifest.limits.context} context rows{anchors}"
    end_bytes, context_rows = resident_bytes(), stream.context_rows
    with console.stage("ask") as (stage, _):
        answer = stream.ask(
            request.question, images=images, max_tiles=request.tiles, max_new_tokens=request.max_new_tokens
        )
        stage.note = f"{len(answer.token_ids)} tokens"
    return RunResult(
        request=request,
        bundle=bundle,
        video=info,
        notices=tuple(_notices(request, pictures, sequence)),
        frames=tuple(frames[max(len(frames) - stream.num_context_frames, 0) :]),
        images=images,
        timings=tuple(timings),
        answer=answer,
        context_rows=context_rows,
        num_anchors=stream.num_anchors,
        warm_bytes=warm_bytes,
        end_bytes=end_bytes,
        damage=damage,
        stillness=stillness,
    )


def _probe(request: RunRequest) -> VideoInfo:
    """Probe the video. Raises MediaError for a live stream, which has no end, so cannot be sampled evenly."""
    video = str(request.video).removeprefix("file://")
    name, has_end = without_password(video), True
    if is_url(video):
        has_end = video.startswith(("http://", "https://"))
        if has_end:
            with VideoReader(video) as reader:
                has_end = reader.has_end
    if not has_end:
        raise MediaError(
            f"{name} is a live stream, which has no end",
            expected="a video file, or one at an http address",
            cause="--video reads a video from beginning to end",
            fix=f"watch it: pvc-live {shlex.quote(str(request.bundle))} --source {shlex.quote(name)}",
        )
    return probe_video(video, fps=request.fps)


def _open_bundle(request: RunRequest, console: Console) -> Bundle:
    with console.stage("open the bundle") as (stage, _):
        bundle = open_bundle(
            request.bundle, runtime=request.runtime, trust_engines=request.trust_engines, threads=request.threads
        )
        num_files = len(bundle.manifest.files) - len(missing_files(bundle.folder, bundle.manifest))
        stage.note = f"{num_files} files verified; runs on {bundle.runs_on}"
        if bundle.runs_on == ON_CPU:
            most = max(bundle.threads.values())
            stage.note += f", {most} thread{'s' if most > 1 else ''}"
    return bundle


def _notices(request: RunRequest, pictures: Sequence[Picture], sequence: PictureSequence | None) -> Iterator[str]:
    for path, picture in zip(request.images, pictures, strict=True):
        yield from (f"{path}: {text}" for text in picture.notices)
    if sequence is not None:
        yield from (f"{request.video}: {text}" for text in sequence.notices)


def _open_stream(bundle: Bundle, request: RunRequest, num_frames: int) -> PVCStream:
    bundle.manifest.prompt.around_images(request.question, len(request.images))  # raises before minutes of video
    return open_stream(
        bundle, num_frames, [request.question], max_new_tokens=request.max_new_tokens, ingest=request.ingest,
        clock=request.clock,
    )  # fmt: skip


def run_command(request: RunRequest, *, model_name: str | None, mapping: Path | None, as_json: bool) -> None:
    """Print the answer, and, if frames were kept, whether it is the reference's.

    Raises ParityError if it is not.
    """
    console = Console(quiet=as_json)
    result = run(request, console)
    for line in describe_run(result):
        console.print(line)
    for line in (*result.notices, *warnings_of(result)):
        console.print(printable(line), style="yellow")
    source = result.bundle.manifest.model
    if source.random_weights:
        console.print(f"The weights are random (seed {source.seed}): the tokens below have no meaning.", style="yellow")
    console.print(f"question: {request.question}")
    console.print(f"{'tokens' if source.random_weights else 'answer'}: {printable(result.answer.text)}")
    comparison = compare_with_reference(result, model_name=model_name, mapping=mapping) if request.keep_frames else None
    if comparison is not None:
        verdict = "equal" if comparison["equal"] else f"a near tie at token {comparison['near_tie_at']}, else equal"
        console.print(f"reference: {verdict} ({comparison['num_tokens']} greedy tokens)")
    if as_json:
        print_json(run_json(result) | {"reference": comparison})


def describe_run(result: RunResult) -> Iterator[str]:
    """The input and the cost, as lines of text."""
    if result.video is not None:
        info = result.video
        yield f"{info.path}: {info.width}x{info.height}, {info.num_frames} frames, {info.fps:.2f} fps"
        stages = ", ".join(f"{name.removesuffix('_ms')} {ms:.1f} ms" for name, ms in result.median_ms().items())
        yield f"per frame: {stages}; 19 of 20 frames take less than {result.slowest_ms():.1f} ms in total"
        if result.warm_bytes is not None and result.end_bytes is not None:
            warm, end = size_text(result.warm_bytes), size_text(result.end_bytes)
            yield f"memory: {warm} resident at frame {WARM_FRAMES}, {end} at frame {len(result.timings)}"
    for path, image in zip(result.request.images, result.images, strict=True):
        yield f"{path}: {image.shape[1]}x{image.shape[0]}"
    answer, token_ms = result.answer, result.token_ms()
    looked = f"images {answer.vision_ms:.1f} ms, " if result.images else ""
    rate = "" if token_ms is None else f", then {token_ms:.1f} ms per token ({1e3 / token_ms:.1f} per second)"
    yield f"time: {looked}first token after {answer.prefill_ms:.1f} ms{rate}"


def warnings_of(result: RunResult) -> Iterator[str]:
    """Problems of the video, as lines of text."""
    if result.video is not None:
        said = [] if result.damage is None else [str(result.damage)]
        yield from (f"{result.video.path}: {text}" for text in (*said, *result.stillness.summary()))


def run_json(result: RunResult) -> dict[str, Any]:
    """The result for JSON."""
    request, bundle, answer = result.request, result.bundle, result.answer
    return {
        "bundle": str(request.bundle),
        "runs_on": bundle.runs_on,
        "threads": bundle.threads,
        "video": None if result.video is None else str(result.video.path),
        "damage": None if result.damage is None else result.damage.to_json(),
        **result.stillness.to_json(),
        "images": [str(path) for path in request.images],
        "num_frames": len(result.timings),
        "notices": list(result.notices),
        "ingest": request.ingest,
        "question": request.question,
        "random_weights": bundle.manifest.model.random_weights,
        "answer": {"text": answer.text, "token_ids": answer.token_ids, "finished": answer.finished},
        "median_ms": result.median_ms(),
        "image_ms": answer.vision_ms,
        "prefill_ms": answer.prefill_ms,
        "decode_ms": answer.decode_ms,
        "context_rows": result.context_rows,
        "num_anchors": result.num_anchors,
        "warm_bytes": result.warm_bytes,
        "end_bytes": result.end_bytes,
    }


def compare_with_reference(
    result: RunResult, *, model_name: str | None = None, mapping: Path | None = None
) -> dict[str, Any]:
    """Compare with the reference's greedy text on the same frames or images, the clip and the prompt in one pass each.

    Raises ParityError at the first token that differs by more than a near tie.
    """
    from pvc_ref.prompt import STOP_TOKEN

    from ..graphs.models import load_reference
    from ..graphs.quantize import as_held
    from ..parity.limits import near_tie
    from ..parity.words.conversations import common_prefix, reference_logits
    from ..parity.words.prompts import Prompt, reference_embeds

    request, manifest = result.request, result.bundle.manifest
    loaded = as_held(load_reference(manifest, model_name, mapping), manifest)
    model, tokenizer = loaded.model, loaded.tokenizer
    kind: Any = "video" if result.frames else "images" if result.images else "text"
    prompt = Prompt(kind=kind, question=request.question, frames=result.frames, images=result.images)
    inputs = reference_embeds(
        loaded, prompt, window=manifest.limits.window, max_tiles=request.tiles or manifest.images.max_tiles
    )
    stop_id = loaded.token_id(STOP_TOKEN)
    expected = model.generate(inputs, max_new_tokens=request.max_new_tokens, stop_ids=[stop_id])
    got = list(result.answer.token_ids)
    text = tokenizer.decode(expected, skip_special_tokens=True)
    comparison: dict[str, Any] = {"reference_text": text, "equal": got == expected, "num_tokens": len(expected)}
    if got == expected:
        return comparison
    at = common_prefix(got, expected)
    logits = reference_logits(loaded, inputs, expected[:at])[-1]
    chosen = got[at] if at < len(got) else stop_id
    margin, limit = float(logits.max() - logits[chosen]), near_tie(logits, manifest.rounding)
    if margin > limit:
        raise ParityError(
            f"token {at} of the answer differs from the reference: the bundle gives {tokenizer.decode([chosen])!r}, "
            f"but the reference prefers another token by {margin:.3g} logits",
            expected=f"the same token, or a near tie within rounding ({limit:.1e} logits)",
            fix=f"find the graph: pvc-export check {shlex.quote(str(result.bundle.folder))}",
        )
    return {**comparison, "near_tie_at": at, "near_tie_margin": margin}
