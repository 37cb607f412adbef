"""`make demo`: the whole way on one machine, from a model to text about a video, with every stage timed.

Exports `tiny` in float16, builds TensorRT-RTX engines ahead of time, checks parity, streams a video through the bundle
(rendered from a seed, or a file of yours), and holds the text against the reference's greedy text.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from engines.bundle import ON_CPU, Bundle
from engines.errors import PVCError
from engines.spec import StreamLimits
from engines.target import load_target
from engines.video import probe_video, write_video

from .console import Console, size_text
from .export import ExportRequest, export
from .frames import render_clip
from .models import load_model
from .run import DEFAULT_QUESTION, RunRequest, RunResult, compare_with_reference, run

OUT = Path("build/demo")
NUM_FRAMES, MAX_NEW_TOKENS = 16, 24


def demo(*, file: Path | None, seed: int, console: Console) -> None:
    """Run every stage and print what it made. Raises PVCError."""
    console.print("1. model and video")
    video = file or _render(Path("build/demo.mp4"), seed, console)
    probe_video(video)  # a file that cannot be read must be known before the export
    with console.stage("load the model") as (stage, _):
        loaded = load_model("tiny")
        stage.note = f"tiny: random weights (seed {loaded.source.seed}), every part of PVC present"
    console.print("2. export, build, check")
    wanted = ExportRequest(out=OUT, target=load_target("rtx"), precision="fp16", limits=StreamLimits())
    parity = export(loaded, wanted, console=console)
    console.print("3. stream")
    request = RunRequest(
        bundle=OUT,
        video=video,
        ask=DEFAULT_QUESTION,
        frames=NUM_FRAMES,
        max_new_tokens=MAX_NEW_TOKENS,
        keep_frames=True,
    )
    bundle, result = run(request, console)
    with console.stage("reference, whole clip") as (stage, _):
        comparison = compare_with_reference(bundle, request, result)
        stage.note = "greedy text equal" if comparison["equal"] else f"near tie at token {comparison['near_tie_at']}"
    console.print()
    for line in _summary(bundle, result, video, parity=parity.summary(), comparison=comparison):
        console.print(line)
    total = sum(stage.seconds for stage in console.stages)
    console.print(f"         {total:.0f} s for all stages")


def _render(path: Path, seed: int, console: Console) -> Path:
    with console.stage("render a clip") as (stage, _):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, render_clip(48, seed=seed), fps=24.0)
        stage.note = f"{path} from seed {seed}"
    return path


def _summary(
    bundle: Bundle, result: RunResult, video: Path, *, parity: str, comparison: dict[str, object]
) -> Iterator[str]:
    manifest, on_cpu = bundle.manifest, bundle.runs_on == ON_CPU
    engines = sum(manifest.files[entry.path].num_bytes for entry in manifest.engines.values())
    size = size_text(sum(entry.num_bytes for entry in manifest.files.values()))
    version = next(iter(manifest.engines.values())).runtime_version
    made = f"{len(manifest.engines)} TensorRT-RTX {version} engines"
    yield f"bundle   {OUT}: {size}, of it {size_text(engines)} in {made}"
    if on_cpu:
        yield "         engines were built here, not executed: the stream ran in ONNX Runtime on this CPU"
        yield "         (fp16 computed in float32)"
    else:
        yield f"         the stream ran on {bundle.runs_on}"
    yield f"parity   {parity}"
    milliseconds = sum(result.median_ms().values())
    yield f"stream   {video}: {len(result.timings)} frames, median {milliseconds:.1f} ms a frame"
    same = "the same greedy tokens" if comparison["equal"] else "the same tokens up to a near tie"
    yield f"text     bundle and reference say {same} ({comparison['num_tokens']})"
    yield "         The weights are random, so the text means nothing and is not shown as an answer."
    yield "next     pvc-export is in .venv/bin; a checkpoint folder goes where 'tiny' stands:"
    yield "         .venv/bin/pvc-export trt -m tiny --fp16 -o build/tiny"
    yield f"         .venv/bin/pvc-export run {OUT} --video {shlex.quote(str(video))} --ask 'What moves?' --reference"
    yield f"         .venv/bin/pvc-live {OUT} --source {shlex.quote(str(video))} --headless --record build/live.mp4"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.demo", description=__doc__.splitlines()[0])
    file, seed = os.environ.get("FILE") or None, os.environ.get("SEED") or 0  # as make hands them over
    parser.add_argument("--file", type=Path, default=file, help="a video; default: a clip rendered from --seed")
    parser.add_argument("--seed", type=int, default=seed, help="seed of the rendered clip")
    args = parser.parse_args()
    try:
        demo(file=args.file, seed=args.seed, console=Console())
    except PVCError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
