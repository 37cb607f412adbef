"""`make demo`: the whole pipeline on one machine, from the bundled model to true sentences about a video.

Exports `shapes` in float16, builds TensorRT-RTX engines ahead of time, checks parity, renders a clip and a printed card
from a seed, streams the clip through the bundle, asks every known question, and shows which answers are true.
With a file of yours, the video is streamed and described; its truth is unknown, so nothing is graded.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines import PVCStream
from engines.bundle import ON_CPU, Bundle
from engines.errors import ParityError, PVCError
from engines.target import load_target
from engines.terminal import fail, printable
from engines.video import probe_video, write_video
from pvc_ref.shapes import Clip, make_clip

from ..bundles.export import ExportRequest, export
from ..graphs.models import load_model
from ..parity.clip import Frame
from ..terminal.console import Console, size_text
from .run import DEFAULT_QUESTION, RunRequest, RunResult, compare_with_reference, run

OUT, VIDEO = Path("build/demo"), Path("build/demo.mp4")
NUM_FRAMES, MAX_NEW_TOKENS = 8, 48
FRAME_SIZE, FPS = 448, 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question, the bundle's answer, and the truth; None if it is unknown."""

    question: str
    answer: str
    truth: str | None

    @property
    def is_right(self) -> bool:
        return self.answer == self.truth


def demo(*, file: Path | None, seed: int, console: Console) -> None:
    """Run every stage and print its results. Raises PVCError."""
    console.print("1. model and video")
    if file is None:
        clip, card = scenes(seed)
        with console.stage("render a clip") as (stage, _):
            VIDEO.parent.mkdir(parents=True, exist_ok=True)
            write_video(VIDEO, iter(clip.bgr()), fps=FPS)
            stage.note = f"{VIDEO} from seed {seed}"
    video = file or VIDEO
    probe_video(video)  # an unreadable file must be reported before the export
    with console.stage("load the model") as (stage, _):
        loaded = load_model("shapes")
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        stage.note = f"shapes: {count / 1e6:.1f} M parameters, trained on coloured shapes and printed codes"
    console.print("2. export, build, check")
    wanted = ExportRequest(out=OUT, target=load_target("rtx"), precision="fp16")
    parity = export(loaded, wanted, console=console)
    if not parity.passed:  # not published: an older bundle of that name must not be mistaken for this one
        raise ParityError(parity.failure_text(), fix="run the export alone: pvc-export trt")
    console.print("3. stream and ask")
    request = RunRequest(
        bundle=OUT, video=video, ask=DEFAULT_QUESTION, frames=NUM_FRAMES, max_new_tokens=MAX_NEW_TOKENS,
        keep_frames=True,
    )  # fmt: skip
    result = run(request, console)
    with console.stage("reference, whole clip") as (stage, _):
        comparison = compare_with_reference(result)
        stage.note = "greedy text equal" if comparison["equal"] else f"near tie at token {comparison['near_tie_at']}"
    console.print()
    if file is None:
        asked = [*ask_about_clip(result.bundle, result.frames, clip), *ask_about_card(result.bundle, card)]
    else:
        asked = [Asked(question=request.question, answer=result.answer.text, truth=None)]
    for line in (*describe(asked), "", *_summary(result, parity=parity.summary(), comparison=comparison)):
        console.print(line)
    total = sum(stage.seconds for stage in console.stages)
    console.print(f"         {total:.0f} s for all stages")


def scenes(seed: int) -> tuple[Clip, Clip]:
    """The clip and the card of a seed; both are held out from training."""
    clip = make_clip(seed, num_frames=NUM_FRAMES, kind="things", size=FRAME_SIZE)
    return clip, make_clip(seed, num_frames=1, kind="card", size=FRAME_SIZE)


def ask_about_clip(bundle: Bundle, frames: Sequence[Frame], clip: Clip) -> Iterator[Asked]:
    """Ask every known question about a clip; `frames` are decoded from the video file."""
    stream = PVCStream(bundle)
    for frame in frames:
        stream.push(frame)
    for question in clip.questions:
        answer = stream.ask(question.text, max_new_tokens=MAX_NEW_TOKENS)
        yield Asked(question=question.text, answer=answer.text, truth=question.answer)


def ask_about_card(bundle: Bundle, card: Clip) -> Iterator[Asked]:
    """Ask for the number printed on a card, shown as an image."""
    stream, image = PVCStream(bundle), card.bgr()[0]
    for question in card.questions:
        if question.topic == "number":
            answer = stream.ask(question.text, images=[image], max_new_tokens=MAX_NEW_TOKENS)
            yield Asked(question=question.text, answer=answer.text, truth=question.answer)


def describe(asked: Sequence[Asked]) -> Iterator[str]:
    """One line per question, and the number of true answers."""
    width = max(len(one.question) for one in asked)
    for one in asked:
        verdict = "     " if one.truth is None else "true " if one.is_right else "FALSE"
        truth = "" if one.truth is None or one.is_right else f"   (truth: {one.truth})"
        yield f"{verdict} {one.question:<{width}}  {printable(one.answer)}{truth}"
    graded = [one for one in asked if one.truth is not None]
    if graded:
        yield f"{sum(one.is_right for one in graded)} of {len(graded)} answers are true"
    else:
        yield "      The model was trained only on flat shapes, their colours and printed codes."


def _summary(result: RunResult, *, parity: str, comparison: dict[str, object]) -> Iterator[str]:
    manifest, video = result.bundle.manifest, result.request.video
    engines = sum(manifest.files[entry.path].num_bytes for entry in manifest.engines.values())
    size = size_text(sum(entry.num_bytes for entry in manifest.files.values()))
    version = next(iter(manifest.engines.values())).runtime_version
    made = f"{len(manifest.engines)} TensorRT-RTX {version} engines"
    yield f"bundle   {OUT}: {size}, including {size_text(engines)} in {made}"
    if result.bundle.runs_on == ON_CPU:
        yield "         engines were built here, not executed: the stream ran in ONNX Runtime on this CPU"
        yield "         (fp16 computed in float32)"
    else:
        yield f"         the stream ran on {result.bundle.runs_on}"
    yield f"parity   {parity}"
    milliseconds = sum(result.median_ms().values())
    yield f"stream   {video}: {len(result.timings)} frames, median {milliseconds:.1f} ms per frame"
    same = "the same greedy tokens" if comparison["equal"] else "the same tokens up to a near tie"
    yield f"text     bundle and reference give {same} ({comparison['num_tokens']})"
    yield "next     pvc-export is in .venv/bin and takes a checkpoint folder instead of 'shapes'; or try:"
    yield "         make demo SEED=2"
    yield f"         .venv/bin/pvc-export run {OUT} --video {shlex.quote(str(video))} --ask 'What happened?'"
    yield f"         .venv/bin/pvc-live {OUT} --source synthetic --headless --record build/live.mp4"
    yield f"         .venv/bin/pvc-live {OUT} --source 0     # a camera: hold printed shapes or digits in front of it"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pvc_export.commands.demo", description=(__doc__ or "").splitlines()[0]
    )
    file, seed = os.environ.get("FILE") or None, os.environ.get("SEED") or 0  # as make passes them
    parser.add_argument("--file", type=Path, default=file, help="a video; default: a clip rendered from --seed")
    parser.add_argument("--seed", type=int, default=seed, help="seed of the rendered clip")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}, expected 0 or more")
    try:
        demo(file=args.file, seed=args.seed, console=Console())
    except PVCError as error:
        raise SystemExit(fail(error, as_json=False)) from None


if __name__ == "__main__":
    main()
