"""Stream a video file through a bundle and ask it a question; optionally hold the text against the reference's.

The streaming half needs no torch and no model code: only `compare_with_reference` does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engines import Answer, PVCStream, open_bundle
from engines.bundle import Bundle, Runtime
from engines.errors import ParityError, StreamFull
from engines.preprocess import segment_indices
from engines.stream import PushTiming
from engines.video import VideoInfo, probe_video, read_video

from .console import Console
from .frames import Frame

DEFAULT_QUESTION = "What happens in this video?"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """One video streamed and one question asked."""

    video: VideoInfo
    frames: tuple[Frame, ...]
    timings: tuple[PushTiming, ...]
    answer: Answer
    context_rows: int

    def median_ms(self) -> dict[str, float]:
        """Median milliseconds a frame of each stage, the first frame left out: it warms up."""
        timings = [asdict(timing) for timing in self.timings[1:] or self.timings]
        return {name: round(median(timing[name] for timing in timings), 3) for name in timings[0]}


def run_video(
    folder: Path,
    video: Path,
    *,
    question: str,
    num_frames: int,
    max_new_tokens: int,
    console: Console,
    runtime: Runtime = "auto",
    trust_engines: bool = False,
    keep_frames: bool = False,
) -> tuple[Bundle, RunResult]:
    """Sample `num_frames` frames evenly from a file (all of them if it is 0), push each, then ask.

    runtime and trust_engines as in open_bundle; keep_frames holds every pushed frame, for compare_with_reference.
    Raises MediaError, BundleError, and StreamFull before the first frame if the context cannot hold them all.
    """
    info = probe_video(video)
    with console.stage("open the bundle") as (stage, _):
        bundle = open_bundle(folder, runtime=runtime, trust_engines=trust_engines)
        stage.note = f"{len(bundle.manifest.files)} files verified; runs on {bundle.runs_on}"
    indices = None if num_frames == 0 else segment_indices(info.num_frames, num_frames)
    count = info.num_frames if indices is None else len(indices)
    stream = PVCStream(bundle, total_frames=count if bundle.manifest.time_mode == "fixed" else None)
    rows = stream.rows_needed(count, question=question, max_new_tokens=max_new_tokens)
    if rows > bundle.manifest.limits.context:
        raise StreamFull(
            f"{count} frames, the question and {max_new_tokens} tokens of answer need {rows} context rows, but the "
            f"bundle has {bundle.manifest.limits.context}. Sample fewer with --frames, or export with "
            f"--context {-(-rows // 256) * 256}"
        )
    frames: list[Frame] = []
    timings: list[PushTiming] = []
    with console.stage(f"stream {count} frames") as (stage, report):
        for frame in read_video(video, indices=indices):
            timings.append(stream.push(frame.bgr))
            if keep_frames:
                frames.append(frame.bgr)
            report(len(timings) / count)
        context_rows = stream.context_rows
        stage.note = f"{context_rows} of {bundle.manifest.limits.context} context rows"
    with console.stage("ask") as (stage, _):
        answer = stream.ask(question, max_new_tokens=max_new_tokens)
        stage.note = f"{len(answer.token_ids)} tokens"
    result = RunResult(
        video=info,
        frames=tuple(frames),
        timings=tuple(timings),
        answer=answer,
        context_rows=context_rows,
    )
    return bundle, result


def compare_with_reference(
    bundle: Bundle, result: RunResult, *, question: str, max_new_tokens: int, model_name: str | None = None
) -> dict[str, Any]:
    """The reference's greedy text on the same frames: whole clip at once, whole prompt at once.

    Raises ParityError at the first token that differs by more than a near tie.
    """
    import numpy as np
    import torch

    from pvc_ref.preprocess import resize_frame
    from pvc_ref.prompt import STOP_TOKEN

    from .models import load_reference
    from .parity import near_tie

    manifest = bundle.manifest
    loaded = load_reference(manifest, model_name)
    model, tokenizer = loaded.model, loaded.tokenizer
    size = model.config.vision.image_size
    pixels = torch.from_numpy(np.stack([resize_frame(frame[..., ::-1], size=size) for frame in result.frames]))
    total = len(pixels) if model.config.time_mode == "fixed" else None
    with torch.no_grad():
        embeds = model.encode_clip(pixels[None], window=manifest.limits.window, total_frames=total)[0]
        inputs = loaded.prompt_embeds(loaded.prompt_ids(num_frames=len(pixels), question=question), embeds)
        stop_id = loaded.token_id(STOP_TOKEN)
        expected = model.generate(inputs, max_new_tokens=max_new_tokens, stop_ids=[stop_id])
    got = list(result.answer.token_ids)
    text = tokenizer.decode(expected, skip_special_tokens=True)
    comparison: dict[str, Any] = {"reference_text": text, "equal": got == expected, "num_tokens": len(expected)}
    if got == expected:
        return comparison
    at = next(i for i in range(max(len(got), len(expected)) + 1) if got[i : i + 1] != expected[i : i + 1])
    with torch.no_grad():
        prefix = torch.cat([inputs, model.llm.embed_tokens(torch.tensor([expected[:at]], dtype=torch.long))], dim=1)
        hidden, _ = model.llm(prefix, torch.arange(prefix.shape[1])[None])
        logits = model.llm.logits(hidden[0, -1])
    chosen = got[at] if at < len(got) else stop_id
    margin, limit = float(logits.max() - logits[chosen]), near_tie(logits.numpy(), manifest.precision)
    if margin > limit:
        raise ParityError(
            f"token {at} of the answer differs from the reference: the bundle says {tokenizer.decode([chosen])!r}, the "
            f"reference prefers another by {margin:.3g} logits, more than rounding explains "
            f"({limit:.1e}). Find the graph: pvc-export check {bundle.folder}"
        )
    return {**comparison, "near_tie_at": at, "near_tie_margin": margin}
