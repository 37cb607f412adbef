"""Drift: does the error of a stream grow with its length? python -m pvc_export.studies.drift [BUNDLE | --wide]

N frames of an endless rendered scene run through the vision graphs in ONNX Runtime on the CPU, without a break, while
the clock runs on and the ring wraps again and again. In blocks of frames (statistics.py) every output and cache row is
compared with the reference at the same frames, by relative L2:
    error    the graphs against torch fp64           the user's result, against the truth
    floor    torch fp32 against torch fp64           the noise floor: the rounding of float32 itself
    beyond   error - floor, frame by frame           the error added by the export
    gap      the graphs against torch fp32           the same, even if a high floor hides it (gap >= beyond); the
                                                     committed limits are for this one
The reference does not run all N frames. With L temporal layers of window W, a frame depends only on the L (W - 1)
frames before it, so the reference runs those in one pass, at their true times. It therefore shares neither ring nor
cache with the graphs. The floor is not constant: time x frequency is rounded to float32, an error that grows with the
clock and is the same in both. So a slope counts as drift only if the floor does not have it too.
Dimension key:  T frames   S pixels a side   N positions   W window
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from engines.errors import NonFiniteError
from engines.memory import Array
from engines.session import Session
from engines.spec import VISION_GRAPHS, GraphSpec, Precision
from engines.synthetic import render_clip
from engines.vision import VisionEncoder
from pvc_ref import PVC
from pvc_ref.temporal import window_bias

from ...graphs.machine import fitting_threads
from ..answers import WORLD
from ..levels import Rule
from ..limits import GATED, NoiseTable, worst_rows
from ..metrics import Difference
from ..places import Place, Rung
from ..recorded_sessions import Recorder
from ..recording import (
    Frames,
    Progress,
    Recording,
    compare,
    recording_of,
    run_reference,
    window_of,
)  # fmt: skip
from ..rounding import Reference
from .report import DriftCurve, DriftReport, Sample
from .statistics import plan_blocks

FLOAT32 = Rung("torch", "fp32")
NUM_BLOCKS = 32
"""Blocks after the first two windows: 256 frames at a window of 8, which take a fifth of the graphs' time."""


def measure_drift(
    sessions: Mapping[str, Session],
    model: PVC,
    noise: NoiseTable,
    *,
    num_frames: int,
    precision: Precision = "fp32",
    progress: Progress = lambda _: None,
) -> DriftReport:
    """Stream through vision sessions on the CPU, and compare with their reference, a float32 model with known noise.

    Raises SpecError if the stream is too short for a slope, NonFiniteError if a graph returns NaN or infinity.
    """
    started = time.perf_counter()
    spec = sessions["temporal"].spec
    recorder = Recorder({name: sessions[name] for name in VISION_GRAPHS})
    total = num_frames if model.config.time_mode == "fixed" else None
    encoder = VisionEncoder(recorder.sessions, time_divisor=total or 1)
    window = encoder.ring.window
    blocks = plan_blocks(num_frames, window, num_blocks=NUM_BLOCKS)
    with fitting_threads(model):
        judge = _Judge(model, spec, noise, window=window, total_frames=total, rung=Rung("bundle", precision))
        kept: deque[Array] = deque(maxlen=judge.reach + max(map(len, blocks)))
        waiting = list(blocks)
        got: Recording = []
        for index, pixels in enumerate(islice(_world(model), num_frames)):
            try:
                encoder.commit(encoder.encode(pixels))
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{error.what} (frame {index} of a stream of {num_frames})",
                    expected=error.expected, cause=error.cause, fix=error.fix,
                ) from error  # fmt: skip
            recorded = recording_of(recorder.restart())
            kept.append(pixels)
            if index in waiting[0]:
                got += recorded
                if index == waiting[0][-1]:
                    judge.compare(waiting.pop(0), got, kept)
                    got = []
            progress((index + 1) / num_frames)
    return DriftReport(
        precision=precision,
        computed_in=sessions["trunk"].computes_in,
        window=window,
        num_frames=num_frames,
        seconds=time.perf_counter() - started,
        curves=judge.curves(num_frames),
    )


def vision_noise(model: PVC, temporal: GraphSpec, *, precision: Precision, islands: Sequence[str] = ()) -> NoiseTable:
    """Rounding noise over two windows and two frames of a stream, from which a longer stream's limits come."""
    window = window_of(temporal)
    pixels = list(islice(_world(model), 2 * window + 2))
    total = len(pixels) if model.config.time_mode == "fixed" else None
    frames, reference = (
        Frames(pixels=pixels, times=range(len(pixels)), total_frames=total),
        Reference.of(model, precision, islands),
    )
    _, noise = run_reference(reference, frames, temporal)
    return NoiseTable(noise.differences, reference.rounding)


def drift_rule(
    sessions: Mapping[str, Session], model: PVC, noise: NoiseTable, *, num_frames: int, precision: Precision
) -> Rule:
    """Level E of a check. Few blocks give a wide interval, so an undecided tensor does not break the rule."""
    name = f"{num_frames} frames in a row"
    try:
        report = measure_drift(sessions, model, noise, num_frames=num_frames, precision=precision)
    except NonFiniteError as error:
        return Rule(level="E", name=name, passed=False, detail=error.what)
    faults = [f"{c.tensor} {c.verdict}" for c in report.curves if c.verdict != "ok" and not c.is_undecided]
    open_ = sum(curve.is_undecided for curve in report.curves)
    detail = f"{len(report.curves)} tensors do not drift" + (f", {open_} undecided in so few frames" if open_ else "")
    return Rule(level="E", name=name, passed=not faults, detail=faults[0] if faults else detail)


def _world(model: PVC) -> Iterator[Array]:
    """Endless frames (S, S, 3) uint8 RGB: scenes of the shapes world if the model was trained on it, else rendered
    shapes."""
    size = model.config.vision.image_size
    if model.trained_on == WORLD:
        from pvc_ref.shapes import watch  # needs OpenCV, which other models do not

        return (shown.frame for shown in watch(size=size))
    return (np.ascontiguousarray(frame[..., ::-1]) for frame in render_clip(None, width=size, height=size))


class _Judge:
    """The reference's side, and every difference found, by tensor in the order of computation."""

    def __init__(
        self, model: PVC, spec: GraphSpec, noise: NoiseTable, *, window: int, total_frames: int | None, rung: Rung
    ) -> None:
        self.model, self.wide, self.noise = model, copy.deepcopy(model).double(), noise
        self.spec, self.window, self.total_frames, self.rung = spec, window, total_frames, rung
        self.singles: list[Difference] = []
        self.blocks: list[Difference] = []
        self.samples: dict[str, list[Sample]] = {}
        self.means: dict[str, list[Sample]] = {}

    @property
    def reach(self) -> int:
        """Number of earlier frames that a frame depends on."""
        return self.model.config.vision.num_temporal_layers * (self.window - 1)

    def compare(self, block: range, got: Recording, kept: Sequence[Array]) -> None:
        """Compare the recorded frames of a block with both references; `kept` ends with the block's last frame."""
        first = max(block.start - self.reach, 0)
        pixels = list(kept)[first - block.stop :]
        fp32, fp64 = (
            reference_block(
                model, pixels, first=first, num_compared=len(got), window=self.window, temporal=self.spec,
                total_frames=self.total_frames,
            )
            for model in (self.model, self.wide)
        )  # fmt: skip
        found = [
            compare(rung, mine, theirs, block).differences
            for rung, mine, theirs in ((self.rung, got, fp32), (FLOAT32, fp32, fp64), (self.rung, got, fp64))
        ]
        for name in got[0]:
            gaps, floors, errors = ([one for one in differences if one.name == name] for differences in found)
            self.singles += gaps
            self.blocks += [_mean_difference(gaps, block), _mean_difference(floors, block)]
            samples = [
                Sample(frame=frame, error=error.rel_l2, floor=floor.rel_l2, gap=gap.rel_l2)
                for frame, error, floor, gap in zip(block, errors, floors, gaps, strict=True)
            ]
            self.samples.setdefault(name, []).extend(samples)
            self.means.setdefault(name, []).append(Sample.mean_of([s for s in samples if s.frame >= self.window]))

    def curves(self, num_frames: int) -> tuple[DriftCurve, ...]:
        blocks = {(row.rung, row.worst.name): row for row in worst_rows(map(self.noise.judged, self.blocks))}
        singles = {row.worst.name: row for row in worst_rows(map(self.noise.judged, self.singles))}
        return tuple(
            DriftCurve(
                tensor=name,
                num_frames=num_frames,
                samples=tuple(samples),
                means=tuple(self.means[name]),
                block=blocks[self.rung, name],
                single=singles[name],
                reference=blocks[FLOAT32, name],
                noise=self.noise.at(singles[name].worst)["rel_l2"],
            )
            for name, samples in self.samples.items()
        )


def _mean_difference(found: Sequence[Difference], block: range) -> Difference:
    """The mean of every metric that has a limit."""
    means: dict[str, Any] = {
        metric: float(np.mean([getattr(difference, metric) for difference in found])) for metric in GATED
    }
    return replace(
        found[0],
        where=Place("frames", block.start, f"frames {block.start} to {block.stop - 1}"),
        max_abs=max(difference.max_abs for difference in found),
        num_nonfinite=sum(difference.num_nonfinite for difference in found),
        num_unknown=sum(difference.num_unknown for difference in found),
        shapes=next((difference.shapes for difference in found if difference.shapes), None),
        **means,
    )


@torch.no_grad()
def reference_block(
    model: PVC,
    pixels: Sequence[Array],
    *,
    first: int,
    num_compared: int,
    window: int,
    temporal: GraphSpec,
    total_frames: int | None = None,
) -> Recording:
    """Every vision tensor of the last num_compared frames, in the model's dtype.

    pixels    (S, S, 3) uint8 RGB of frames first, first + 1, ...: the compared frames, after the L (W - 1) frames they
              depend on, or fewer at the beginning of the stream
    temporal  the graph's spec, which names the cache rows
    """
    x = model.trunk(torch.from_numpy(np.stack(pixels)))
    times = model.frame_times(first, len(x), total_frames=total_frames, device=x.device)
    features, new = model.temporal(x[None], times[None], None, window_bias(len(x), window, like=x))
    tensors = {"trunk/trunk_features": x, "temporal/features": features[0]}
    rows = (row[0] for pair in new for row in pair)
    tensors |= {f"temporal/{state.output}": row for state, row in zip(temporal.row_states, rows, strict=True)}
    tensors = {name: tensor[-num_compared:] for name, tensor in tensors.items()}
    tensors["compressor/frame_embeds"] = model.compressor(tensors["temporal/features"], times[-num_compared:])
    return [
        {name: tensor[index : index + 1].numpy() for name, tensor in tensors.items()} for index in range(num_compared)
    ]
