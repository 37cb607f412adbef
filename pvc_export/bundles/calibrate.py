"""Scales of what products are fed, found on frames that stream by as they will on a device.

Each clip is a stream of its own, so that rings fill and wrap, and at its end the clock runs ahead: what is made of a
frame's time has other values in an hour than in a second. By default the clip is this program's own: rendered frames,
which are not those of a check, and a few of a real camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from engines.manifest import Calibration
from engines.memory import Array
from engines.spec import CalibrationMethod, StreamLimits
from engines.video import VideoReader, check_is_file, probe_video
from pvc_ref import PVC, VisionState
from pvc_ref.preprocess import resize_frame

from ..graphs.calibration import observed
from ..graphs.hollow import in_memory
from ..graphs.quantize import PREFIXES, Quantizer
from ..parity.clip import real_frames, render_clip
from ..parity.recorded_stream import FAR_FRAME

MOST_FRAMES = 32
"""Of one clip, evenly in time."""
SEED = 1
"""Of rendered frames. A check shows those of seed 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRequest:
    """clips  video files; none: the program's own;  method  how a scale is chosen"""

    clips: tuple[Path, ...] = ()
    method: CalibrationMethod = "error"

    def require_files(self) -> None:
        """Raises MediaError for a clip that is no file."""
        for path in self.clips:
            check_is_file(path)


def calibrate(
    quantizer: Quantizer, request: CalibrationRequest, limits: StreamLimits, progress: Callable[[float], None]
) -> Calibration:
    """The scale of each product that needs one. Raises MediaError for a clip that cannot be read."""
    source, names = quantizer.source, quantizer.calibrated
    model = source if source.stored is None else in_memory(source, PREFIXES["vision"])
    clips: Sequence[Path | None] = request.clips or [None]
    num_frames = 0
    with observed(model, names) as sizes:
        for index, clip in enumerate(clips):
            frames = list(_frames(clip, limits, size=model.config.vision.image_size))
            num_frames += len(frames)
            for done in _stream(model, frames, limits):
                progress((index + done) / len(clips))
    return Calibration(
        method=request.method,
        clips=tuple(path.name for path in request.clips),
        num_frames=num_frames,
        scales={name: sizes[name].scale(request.method, quantizer.dtype) for name in names},
    )


def _frames(clip: Path | None, limits: StreamLimits, *, size: int) -> Iterator[Array]:
    """RGB (S, S, 3) uint8, of a video or our own."""
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
def _stream(model: PVC, frames: Sequence[Array], limits: StreamLimits) -> Iterator[float]:
    """Show the frames, and the last window of them again at the far ends of the clock. Yields the part that is done."""
    total = len(frames) if model.config.time_mode == "fixed" else None
    last = frames[-limits.window :]
    far = () if total is not None else _far_times(model, limits, len(frames), len(last))
    state: VisionState | None = None
    num_shown, num_all = 0, len(frames) + len(far) * len(last)
    for start, some in ((0, frames), *((time, last) for time in far)):
        if state is not None:
            state = replace(state, num_frames=start)
        for pixels in some:
            _, state = model.frame_outputs(
                torch.from_numpy(pixels)[None], state, window=limits.window, total_frames=total
            )
            num_shown += 1
            yield num_shown / num_all


def _far_times(model: PVC, limits: StreamLimits, num_frames: int, num_last: int) -> tuple[int, ...]:
    """Where the clock jumps to, after a clip, for the last frames: the end of what was trained, and far beyond it, or
    of a table its end."""
    ends = (model.config.trained_frames, FAR_FRAME) if limits.num_times is None else (limits.num_times,)
    return tuple(dict.fromkeys(max(end, num_frames + num_last) - num_last for end in ends))
