"""Calibration: scales of the matmul inputs and smoothing factors of the LLM, found by running the model before export.

Frames are streamed as on a device. Each clip is a stream of its own, so that rings fill and wrap. At its end the clock
jumps ahead, because values that depend on a frame's time differ after an hour from those after a second. The default
clip is built in: rendered frames, other than those of a check, and a few from a real camera. The LLM reads a prompt
with the first frames of each clip, and pages of varied text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engines.manifest import Calibration
from engines.memory import Array
from engines.spec import CalibrationMethod, StreamLimits
from engines.video import VideoReader, check_is_file, probe_video
from pvc_ref import PVC, VisionState
from pvc_ref.llm import causal_bias
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT

from ..graphs.calibration import observed
from ..graphs.hollow import in_memory
from ..graphs.models import LoadedModel
from ..graphs.modules import PREFIX
from ..graphs.quantize import PREFIXES, Quantizer
from ..graphs.smoothing import exponents_of, largest_inputs, layer_sites
from ..parity.clip import real_frames, render_clip
from ..parity.recorded_stream import FAR_FRAME

MOST_FRAMES = 32
"""Frames read from one clip, evenly spaced in time."""
FRAMES_IN_TEXT = 4
"""Frames of each clip that the LLM reads."""
QUESTION = "What happens in this video?"
TEXT_NAME = "calibration.txt"
ROWS = 1024
"""Rows of text per LLM pass."""
SEED = 1
"""Seed of the rendered frames. A check uses seed 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRequest:
    """clips: video files, or empty for the built-in clip. method: how scales are chosen."""

    clips: tuple[Path, ...] = ()
    method: CalibrationMethod = "error"

    def require_files(self) -> None:
        """Raises MediaError for a clip that is not a file."""
        for path in self.clips:
            check_is_file(path)


def calibrate(
    loaded: LoadedModel,
    quantizer: Quantizer,
    request: CalibrationRequest,
    limits: StreamLimits,
    progress: Callable[[float], None],
) -> Calibration:
    """Find the scales and smoothing that a model's quantization needs. Raises MediaError for an unreadable clip."""
    names, has_text = quantizer.calibrated, quantizer.is_smoothed
    source = loaded.model
    model = source if source.stored is None else in_memory(source, PREFIXES["vision"])
    clips: Sequence[Path | None] = request.clips or [None]
    num_frames, seen = 0, list[Tensor]()
    with observed(model, names) as sizes:
        for index, clip in enumerate(clips):
            frames = list(_frames(clip, limits, size=model.config.vision.image_size))
            shown = frames if names else frames[:FRAMES_IN_TEXT]
            num_frames += len(shown)
            embeds = list[Tensor]()
            for done, frame_embeds in _stream(model, shown, limits, far=bool(names)):
                embeds.append(frame_embeds)
                progress((index + done) / len(clips) * (0.5 if has_text else 1))
            seen.append(torch.cat(embeds[:FRAMES_IN_TEXT]))
    del model  # before the layers of the LLM are read
    return Calibration(
        method=request.method,
        clips=tuple(path.name for path in request.clips),
        num_frames=num_frames,
        scales={name: sizes[name].scale(request.method, quantizer.dtype) for name in names},
        smoothing=_smoothing(loaded, seen, lambda x: progress(0.5 + 0.5 * x)) if has_text else {},
    )


@torch.no_grad()
def _smoothing(loaded: LoadedModel, clips: Sequence[Tensor], progress: Callable[[float], None]) -> dict[str, str]:
    """Smoothing exponents of every channel, from clips of frame_embeds (T, M, E). Runs layer by layer, because a large
    model's weights stay in files."""
    source, config = loaded.model, loaded.config.llm
    table = in_memory(source, (PREFIX["embed"],)).llm.embed_tokens
    rows = [table(ids)[None] for ids in _pages(loaded)]
    for embeds in clips:
        ids = loaded.prompt_ids(num_frames=len(embeds), question=QUESTION)
        context = ids == loaded.token_id(IMAGE_CONTEXT)
        rows.append(table(ids).masked_scatter(context[:, None], embeds.flatten(0, 1))[None])
    found: dict[str, str] = {}
    for index in range(config.num_layers):
        model = in_memory(source, (f"llm.layers.{index}.",))
        sites = layer_sites(config, index)
        with largest_inputs(model, [site.readers[0] for site in sites]) as inputs:
            for number, x in enumerate(rows):
                rope = model.llm.angles(torch.arange(x.shape[1])[None], x.dtype)
                rows[number], _ = model.llm.layers[index](x, rope, None, causal_bias(x, 0, None))
        for site in sites:
            weights = [model.get_parameter(f"{reader}.weight") for reader in site.readers]
            found[site.source] = exponents_of(site, inputs[site.readers[0]], weights)
        progress((index + 1) / config.num_layers)
    return found


def _pages(loaded: LoadedModel) -> Sequence[Tensor]:
    """Token ids (L,) of varied text, in chunks that fit a small context."""
    text = (Path(__file__).parent / TEXT_NAME).read_text(encoding="utf-8")
    ids = torch.tensor(loaded.tokenizer.encode(text, add_special_tokens=False).ids)
    pages: Sequence[Tensor] = ids.split(min(ROWS, loaded.config.llm.max_positions))
    return pages


def _frames(clip: Path | None, limits: StreamLimits, *, size: int) -> Iterator[Array]:
    """RGB frames (S, S, 3) uint8, of a video or of the built-in clip."""
    if clip is None:
        shown = [*render_clip(2 * limits.window, seed=SEED), *real_frames()]
    else:
        info = probe_video(clip)
        with VideoReader(clip) as reader:
            times_s = info.sample_times(min(info.num_frames, MOST_FRAMES))
            shown = [frame.bgr for frame in reader.shown_at(times_s)]
    for bgr in shown:
        yield resize_frame(np.ascontiguousarray(bgr[..., ::-1]), size=size)


@torch.no_grad()
def _stream(model: PVC, frames: Sequence[Array], limits: StreamLimits, *, far: bool) -> Iterator[tuple[float, Tensor]]:
    """Stream the frames; with `far`, also the last window of them again at the far ends of the clock. Yields the
    fraction done and frame_embeds (1, M, E)."""
    total = len(frames) if model.config.time_mode == "fixed" else None
    last = frames[-limits.window :]
    jumps = _far_times(model, limits, len(frames), len(last)) if far and total is None else ()
    state: VisionState | None = None
    num_shown, num_all = 0, len(frames) + len(jumps) * len(last)
    for start, some in ((0, frames), *((time, last) for time in jumps)):
        if state is not None:
            state = replace(state, num_frames=start)
        for pixels in some:
            outputs, state = model.frame_outputs(
                torch.from_numpy(pixels)[None], state, window=limits.window, total_frames=total
            )
            num_shown += 1
            yield num_shown / num_all, outputs.frame_embeds


def _far_times(model: PVC, limits: StreamLimits, num_frames: int, num_last: int) -> tuple[int, ...]:
    """Frame indices to which the clock jumps after a clip: the end of the trained times and far past it, or the end of
    the table if the clock is one."""
    ends = (model.config.trained_frames, FAR_FRAME) if limits.num_times is None else (limits.num_times,)
    return tuple(dict.fromkeys(max(end, num_frames + num_last) - num_last for end in ends))
