"""Recording of a clip on any rung of the ladder: every output of the vision graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from engines.manifest import Manifest
from engines.memory import Array
from engines.session import Session
from engines.spec import VISION_GRAPHS, GraphSpec
from engines.vision import VisionEncoder
from pvc_ref import PVC, VisionState
from pvc_ref.preprocess import resize_frame

from ..graphs.machine import is_small
from .clip import check_clip
from .evidence import Evidence
from .float16_on_cpu import Float16Products
from .metrics import compare_arrays
from .places import Place, Rung
from .recorded_sessions import Calls, Recorder
from .rounding import Reference

Progress = Callable[[float], None]
"""Called with the fraction done, 0 to 1."""
Recording = list[dict[str, Array]]
"""Per frame, each output of the vision graphs as 'graph/tensor'."""
TRUNK_FEATURES, FEATURES, EMBEDS = "trunk/trunk_features", "temporal/features", "compressor/frame_embeds"
SAMPLED_FRAMES = 3
"""Frames of a large model that are computed in float64: the noise of later frames is of the same size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """The input of every rung: pixels uint8 (S, S, 3) RGB, and the time of each frame.

    Times run 0, 1, 2, ... and then jump ahead by multiples of the window, so that slots stay where they are.
    """

    pixels: Sequence[Array]
    times: Sequence[int]
    total_frames: int | None

    def first(self, count: int) -> Frames:
        """The first `count` frames."""
        return replace(self, pixels=self.pixels[:count], times=self.times[:count])

    @property
    def num_consecutive(self) -> int:
        """Frames before the clock jumps: one clip."""
        return sum(index == time for index, time in enumerate(self.times))


def check_frames(manifest: Manifest) -> Frames:
    """The clip of a check, two windows and two frames, as the reference resizes it, without the clock's jumps."""
    clip = check_clip(2 * manifest.limits.window + 2)
    pixels = [resize_frame(frame[..., ::-1], size=manifest.shape.image_size) for frame in clip]
    total = len(clip) if manifest.time_mode == "fixed" else None
    return Frames(pixels=pixels, times=range(len(clip)), total_frames=total)


@torch.no_grad()
def run_torch(model: PVC, frames: Frames, temporal: GraphSpec, progress: Progress = lambda _: None) -> Recording:
    """Run the reference's streaming form in the model's dtype, with the window and the names of a temporal graph."""
    recording: Recording = []
    for tensors, times in torch_features(model, frames, temporal):
        with Float16Products():
            tensors[EMBEDS] = model.compressor(tensors[FEATURES], times)
        recording.append({name: to_numpy(tensor) for name, tensor in tensors.items()})
        progress(len(recording) / len(frames.times))
    return recording


def torch_features(
    model: PVC, frames: Frames, temporal: GraphSpec
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Per frame, the tensors that run_torch records before the compressor, and the frame's time, (1,)."""
    names, window = [state.output for state in temporal.row_states], window_of(temporal)
    state: VisionState | None = None
    for pixels, time in zip(frames.pixels, frames.times, strict=True):
        if state is not None:
            state = VisionState(past=state.past, num_frames=time)
        with torch.no_grad(), Float16Products():
            found, state = model.frame_features(
                torch.from_numpy(pixels)[None], state, window=window, total_frames=frames.total_frames
            )
        rows = [row for pair in found.new for row in pair]
        tensors = {TRUNK_FEATURES: found.trunk_features, FEATURES: found.features}
        tensors |= {f"temporal/{name}": row for name, row in zip(names, rows, strict=True)}
        yield tensors, found.times


def run_twin(
    reference: Reference, frames: Frames, temporal: GraphSpec, progress: Progress = lambda _: None
) -> Recording:
    """Run the model's twin on every frame, or if it computes in float64 and is large, on the first few."""
    if reference.rung.dtype == "fp32" and not is_small(reference.model):
        frames = frames.first(SAMPLED_FRAMES)
    return run_torch(reference.twin, frames, temporal, progress)


def noise_of(reference: Reference, own: Recording, twin: Recording, times: Sequence[int]) -> Evidence:
    """Rounding noise of every tensor in the frames that the twin computed."""
    return Evidence(
        differences=tuple(
            reference.noise(value, theirs[name], graph=graph, tensor=tensor, where=Place("frame", time))
            for mine, theirs, time in zip(own, twin, times, strict=False)
            for name, value in mine.items()
            for graph, tensor in [name.split("/")]
        )
    )


def run_reference(reference: Reference, frames: Frames, temporal: GraphSpec) -> tuple[Recording, Evidence]:
    """The model's outputs for every frame, and their noise."""
    own = run_torch(reference.model, frames, temporal)
    return own, noise_of(reference, own, run_twin(reference, frames, temporal), frames.times)


def twin_embeds(own: Recording, twin: Recording, num_frames: int) -> Array:
    """frame_embeds (num_frames, M, E) of the twin. A frame it did not compute gets the error of one it did."""
    found = []
    for index, frame in enumerate(own[:num_frames]):
        known = index % len(twin)
        off = twin[known][EMBEDS] - own[known][EMBEDS]
        theirs = twin[index][EMBEDS] if index < len(twin) else frame[EMBEDS] + off
        found.append(theirs)
    return np.concatenate(found)


def window_of(temporal: GraphSpec) -> int:
    """Slots of the ring that a temporal graph reads."""
    return int(temporal.input("slot_mask").resolve({"batch": 1})[1])


def run_sessions(sessions: Mapping[str, Session], frames: Frames, progress: Progress = lambda _: None) -> Recording:
    """Run any set of vision sessions through the encoder that streams use."""
    recorder = Recorder({name: sessions[name] for name in VISION_GRAPHS})
    encoder = VisionEncoder(recorder.sessions, time_divisor=frames.total_frames or 1)
    for index, (pixels, time) in enumerate(zip(frames.pixels, frames.times, strict=True)):
        encoder.ring.num_frames = time
        encoder.commit(encoder.encode(pixels))
        progress((index + 1) / len(frames.times))
    return recording_of(recorder.calls)


def recording_of(calls: Calls) -> Recording:
    """The vision outputs of recorded calls, frame by frame."""
    return [
        {f"{graph}/{name}": array for graph, outputs in zip(VISION_GRAPHS, frame, strict=True)
         for name, array in outputs.items()}
        for frame in zip(*(calls[graph] for graph in VISION_GRAPHS), strict=True)
    ]  # fmt: skip


def compare(rung: Rung, got: Recording, want: Recording, times: Sequence[int]) -> Evidence:
    """Compare every tensor of every frame with the neighbouring rung's. times: the frames' times."""
    return Evidence(
        differences=tuple(
            compare_arrays(mine[name], value, rung=rung, graph=graph, tensor=tensor, where=Place("frame", time))
            for mine, theirs, time in zip(got, want, times, strict=True)
            for name, value in theirs.items()
            for graph, tensor in [name.split("/")]
        )
    )


def to_numpy(tensor: torch.Tensor) -> Array:
    """Convert to numpy, which has no bfloat16: its values become float32, exactly."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
