"""`make demo`: the whole way on one machine, from a model to text about a video, with every stage timed.

Exports `tiny` in float16, builds TensorRT-RTX engines ahead of time, checks parity, streams a video through the bundle
(rendered from a seed, or a file of yours), and holds the text against the reference's greedy text.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from engines.errors import PVCError
from engines.manifest import Manifest
from engines.spec import StreamLimits
from engines.target import load_target
from engines.video import probe_video, write_video

from .console import Console, size_text
from .export import ExportRequest, export
from .frames import render_clip
from .models import load_model
from .run import DEFAULT_QUESTION, compare_with_reference, run_video

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
    request = ExportRequest(out=OUT, target=load_target("rtx"), precision="fp16", limits=StreamLimits())
    parity = export(loaded, request, console=console)
    console.print("3. stream")
    bundle, result = run_video(
        OUT,
        video,
        question=DEFAULT_QUESTION,
        num_frames=NUM_FRAMES,
        max_new_tokens=MAX_NEW_TOKENS,
        console=console,
        keep_frames=True,
    )
    with console.stage("reference, whole clip") as (stage, _):
        comparison = compare_with_reference(bundle, result, question=DEFAULT_QUESTION, max_new_tokens=MAX_NEW_TOKENS)
        stage.note = "greedy text equal" if comparison["equal"] else f"near tie at token {comparison['near_tie_at']}"
    _summary(console, Manifest.load(OUT), parity.summary(), video, len(result.timings), result.median_ms(), comparison)


def _render(path: Path, seed: int, console: Console) -> Path:
    with console.stage("render a clip") as (stage, _):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, render_clip(48, seed=seed), fps=24.0)
        stage.note = f"{path} from seed {seed}"
    return path


def _summary(
    console: Console, manifest: Manifest, parity: str, video: Path, num_frames: int, medians: dict[str, float],
    comparison: dict[str, object],
) -> None:  # fmt: skip
    total = sum(stage.seconds for stage in console.stages)
    engines = sum(manifest.files[entry.path].num_bytes for entry in manifest.engines.values())
    size = size_text(sum(entry.num_bytes for entry in manifest.files.values()))
    version = next(iter(manifest.engines.values())).runtime_version
    milliseconds = sum(medians.values())
    console.print()
    console.print(
        f"bundle   {OUT}: {size}, of it {size_text(engines)} in {len(manifest.engines)} TensorRT-RTX {version} engines"
    )
    console.print(
        "         engines were built here, not executed: the stream ran in ONNX Runtime on this CPU (fp16 in float32)"
    )
    console.print(f"parity   {parity}")
    console.print(
        f"stream   {video}: {num_frames} frames, median {milliseconds:.1f} ms a frame, total {total:.0f} s for "
        "all stages"
    )
    same = "the same greedy tokens" if comparison["equal"] else "the same tokens up to a near tie"
    console.print(f"text     bundle and reference say {same} ({comparison['num_tokens']})")
    console.print("         The weights are random, so the text means nothing and is not shown as an answer.")
    console.print("next     pvc-export is in .venv/bin; a checkpoint folder goes where 'tiny' stands:")
    console.print("         .venv/bin/pvc-export trt -m tiny --fp16 -o build/tiny")
    console.print(
        f"         .venv/bin/pvc-export run {OUT} --video {shlex.quote(str(video))} --ask 'What moves?' --reference"
    )


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
