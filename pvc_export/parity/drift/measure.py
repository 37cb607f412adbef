"""Drift: does the error of a stream grow with its length? python -m pvc_export.parity.drift.measure [BUNDLE | --wide]

N frames of an endless rendered scene run through the vision graphs in ONNX Runtime's CPU, without a gap, the clock
running on and the ring wrapping over and over. In blocks of frames (statistics.py) every output and cache row is held
against the reference, at the same frames, by relative L2:
    error    the graphs against torch fp64           what a user gets, against the truth
    floor    torch fp32 against torch fp64           what float32 costs by itself: the noise floor
    beyond   error - floor, frame by frame           what the export adds to it
    gap      the graphs against torch fp32           the same, also where a high floor hides it: gap >= beyond, and what
                                                     the committed limits are for
Unusual: the reference does not run all N frames. Through L temporal layers of window W a frame depends on the
L (W - 1) frames before it and on no other, so the reference sees those, whole, at their true times; and so it shares
neither ring nor cache with what it judges. The floor is no constant: time x frequency is rounded to float32, an error
that grows with the clock and is the same in both, so a slope counts as drift only where the floor does not have it too.
Dimension key:  T frames   S pixels a side   N positions   W window
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from engines.errors import NonFiniteError, ParityError, PVCError
from engines.memory import Array
from engines.session import Session
from engines.spec import VISION_GRAPHS, GraphSpec, Precision, StreamLimits
from engines.synthetic import render_clip
from engines.target import load_target
from engines.vision import VisionEncoder
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.layers import visible_to_bias

from ...graphs.models import load_reference
from ...terminal.console import Console
from ..bfloat16_on_cpu import open_on_cpu
from ..ladder import Progress, Recording, fitting_threads, open_graphs, recording_of, require_same_shape
from ..levels import Rule
from ..metrics import Difference, compare_arrays, limit_key, load_thresholds, worst_rows
from ..recorded_sessions import Recorder
from ..words.results import WORLD
from .statistics import Block, DriftCurve, DriftReport, Sample, plan_blocks

__all__ = ["DriftReport", "drift_rule", "measure_drift"]
NUM_FRAMES = 10_000
NUM_BLOCKS = 32
"""Blocks behind the first two windows: 256 frames at a window of 8, in a fifth of the time that the graphs take."""
WIDE = PVCConfig(
    vision=VisionConfig(image_size=112, num_layers=4, num_temporal_layers=2),  # 1024 wide
    compressor=CompressorConfig(num_tokens=64),
    llm=LLMConfig(vocab_size=264, hidden_size=256, num_layers=1, num_heads=4, num_kv_heads=4, mlp_size=256),
    template="tiny",
)
"""The published width at a depth and resolution that two cores can stream."""


def measure_drift(
    sessions: Mapping[str, Session],
    model: PVC,
    *,
    num_frames: int = NUM_FRAMES,
    precision: Precision = "fp32",
    progress: Progress = lambda _: None,
) -> DriftReport:
    """Stream through vision sessions on the CPU, beside their reference, a float32 model.

    Raises SpecError for a stream too short for a slope, ParityError if a graph returns NaN or infinity, or a tensor of
    another shape than the reference's.
    """
    started = time.perf_counter()
    spec = sessions["temporal"].spec
    recorder = Recorder({name: sessions[name] for name in VISION_GRAPHS})
    total = num_frames if model.config.time_mode == "fixed" else None
    encoder = VisionEncoder(recorder.sessions, time_divisor=total or 1)
    window = encoder.ring.window
    blocks = plan_blocks(num_frames, window, num_blocks=NUM_BLOCKS)
    with fitting_threads(model):
        judge = _Judge(model=model, spec=spec, window=window, total_frames=total, stage=f"bundle {precision}")
        kept: deque[Array] = deque(maxlen=judge.reach + max(block.stop - block.start for block in blocks))
        waiting = list(blocks)
        got: Recording = []
        for index, pixels in enumerate(islice(_world(model), num_frames)):
            try:
                encoder.commit(encoder.encode(pixels))
            except NonFiniteError as error:
                raise ParityError(f"{error} (frame {index} of a stream of {num_frames})") from error
            recorded = recording_of(recorder.restart())
            kept.append(pixels)
            if index >= waiting[0].start:
                got += recorded
                if index == waiting[0].stop - 1:
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


def drift_rule(sessions: Mapping[str, Session], model: PVC, *, num_frames: int, precision: Precision) -> Rule:
    """Level E of a check. So few blocks leave a wide interval: what no longer stream decided breaks no rule."""
    name = f"{num_frames} frames in a row"
    try:
        report = measure_drift(sessions, model, num_frames=num_frames, precision=precision)
    except ParityError as error:
        return Rule(level="E", name=name, passed=False, detail=str(error))
    faults = [f"{c.tensor} {c.verdict}" for c in report.curves if c.verdict != "ok" and not c.is_undecided]
    if faults:
        return Rule(level="E", name=name, passed=False, detail=faults[0])
    open_ = sum(curve.is_undecided for curve in report.curves)
    detail = f"{len(report.curves)} tensors do not drift" + (f", {open_} of them undecided in so few" if open_ else "")
    return Rule(level="E", name=name, passed=True, detail=detail)


def _world(model: PVC) -> Iterator[Array]:
    """Frames (S, S, 3) uint8 RGB without an end, of the world that the model was taught, else of rendered shapes."""
    size = model.config.vision.image_size
    if model.trained_on == WORLD:
        from pvc_ref.shapes import watch  # needs OpenCV, which other models do not

        return (shown.frame for shown in watch(size=size))
    return (np.ascontiguousarray(frame[..., ::-1]) for frame in render_clip(None, width=size, height=size))


@dataclass(slots=True)
class _Judge:
    """The reference's side, and every difference found. By tensor, in the order in which a frame makes them."""

    model: PVC
    spec: GraphSpec
    window: int
    total_frames: int | None
    stage: str
    wide: PVC = field(init=False)
    singles: list[Difference] = field(default_factory=list)
    blocks: list[Difference] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    means: dict[str, list[Sample]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wide = copy.deepcopy(self.model).double()

    @property
    def reach(self) -> int:
        """Frames before it that a frame depends on."""
        return self.model.config.vision.num_temporal_layers * (self.window - 1)

    def compare(self, block: Block, got: Recording, kept: Sequence[Array]) -> None:
        """Hold the recorded frames of a block against both references; `kept` ends with the block's last frame."""
        first = max(block.start - self.reach, 0)
        pixels = list(kept)[first - block.stop :]
        fp32, fp64 = (
            reference_block(
                model, pixels, first=first, num_compared=len(got), window=self.window, temporal=self.spec,
                total_frames=self.total_frames,
            )
            for model in (self.model, self.wide)
        )  # fmt: skip
        for name in got[0]:
            gaps = _differences(self.stage, name, got, fp32, block)
            floors = _differences("torch fp32", name, fp32, fp64, block)
            errors = _differences(self.stage, name, got, fp64, block)
            self.singles += gaps
            self.blocks += [_mean_difference(gaps, block), _mean_difference(floors, block)]
            frames = range(block.start, block.stop)
            samples = [
                Sample(frame=frame, error=error.rel_l2, floor=floor.rel_l2, gap=gap.rel_l2)
                for frame, error, floor, gap in zip(frames, errors, floors, gaps, strict=True)
            ]
            self.samples.setdefault(name, []).extend(samples)
            self.means.setdefault(name, []).append(Sample.mean_of([s for s in samples if s.frame >= self.window]))

    def curves(self, num_frames: int) -> tuple[DriftCurve, ...]:
        blocks = {(row.stage, f"{row.graph}/{row.tensor}"): row for row in worst_rows(self.blocks)}
        singles = {f"{row.graph}/{row.tensor}": row for row in worst_rows(self.singles)}
        measured = load_thresholds()[self.stage]
        return tuple(
            DriftCurve(
                tensor=name,
                num_frames=num_frames,
                samples=tuple(samples),
                means=tuple(self.means[name]),
                block=blocks[self.stage, name],
                single=singles[name],
                reference=blocks["torch fp32", name],
                noise=measured[limit_key(*name.split("/"))]["rel_l2"]["measured"],
            )
            for name, samples in self.samples.items()
        )


def _differences(stage: str, name: str, got: Recording, want: Recording, block: Block) -> list[Difference]:
    """One tensor in every frame of a block."""
    graph, tensor = name.split("/")
    found = []
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        where = f"frame {block.start + index}"
        require_same_shape(mine[name], theirs[name], name, where)
        found.append(compare_arrays(mine[name], theirs[name], stage=stage, graph=graph, tensor=tensor, where=where))
    return found


def _mean_difference(found: Sequence[Difference], block: Block) -> Difference:
    """The mean of what has a limit."""

    def mean(metric: str) -> float:
        return float(np.mean([getattr(difference, metric) for difference in found]))

    return replace(
        found[0],
        where=f"frames {block.start} to {block.stop - 1}",
        max_abs=max(difference.max_abs for difference in found),
        rel_l2=mean("rel_l2"),
        worst_token=mean("worst_token"),
        cosine_gap=mean("cosine_gap"),
        norm_gap=mean("norm_gap"),
        num_nonfinite=sum(difference.num_nonfinite for difference in found),
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

    pixels    (S, S, 3) uint8 RGB of frames first, first + 1, ...: those that are compared, and before them the
              L (W - 1) that they depend on, fewer only where the stream begins
    temporal  the graph's spec, which names the cache rows
    """
    x = model.trunk(torch.from_numpy(np.stack(pixels)))
    times = model.frame_times(first, len(x), total_frames=total_frames, device=x.device)
    age = torch.arange(len(x))[:, None] - torch.arange(len(x))[None, :]
    bias = visible_to_bias(((age >= 0) & (age < window))[None], x.dtype)
    features, new = model.temporal(x[None], times[None], None, bias)
    tensors = {"trunk/trunk_features": x, "temporal/features": features[0]}
    rows = (row[0] for pair in new for row in pair)
    tensors |= {f"temporal/{state.output}": row for state, row in zip(temporal.states, rows, strict=True)}
    tensors = {name: tensor[-num_compared:] for name, tensor in tensors.items()}
    tensors["compressor/frame_embeds"] = model.compressor(tensors["temporal/features"], times[-num_compared:])
    return [
        {name: tensor[index : index + 1].numpy() for name, tensor in tensors.items()} for index in range(num_compared)
    ]


# -- command line ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """What is measured."""

    name: str
    sessions: Mapping[str, Session]
    model: PVC
    precision: Precision


@contextmanager
def _open(bundle: Path | None) -> Iterator[_Subject]:
    """A bundle beside the model that it was made from, or the wide random model, exported in float32 for this."""
    if bundle is not None:
        with open_on_cpu(bundle) as opened:
            model = load_reference(opened.manifest).model
            yield _Subject(name=str(bundle), sessions=opened.sessions, model=model, precision=opened.manifest.precision)
        return
    model = PVC.random(WIDE, seed=0)
    with tempfile.TemporaryDirectory(prefix="pvc-drift-") as folder:
        sessions = open_graphs(model, VISION_GRAPHS, load_target("cpu"), StreamLimits(), Path(folder))
        yield _Subject(name="width 1024, random weights", sessions=sessions, model=model, precision="fp32")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pvc_export.parity.drift.measure", description=__doc__.splitlines()[0]
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("bundle", nargs="?", type=Path, help="a bundle, as pvc-export makes it")
    subject.add_argument(
        "--wide", action="store_true", help="a random model, 1024 wide, of 4 layers, exported for this"
    )
    parser.add_argument("--frames", type=int, default=NUM_FRAMES, help=f"length of the stream ({NUM_FRAMES})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every curve")
    args = parser.parse_args()
    try:
        with _open(args.bundle) as opened, Console().stage(f"{args.frames} frames") as (_, progress):
            report = measure_drift(
                opened.sessions, opened.model, num_frames=args.frames, precision=opened.precision, progress=progress
            )
    except PVCError as error:
        parser.exit(error.exit_code, f"{type(error).__name__}: {error}\n")
    print("\n".join([opened.name, *report.table(), report.summary()]))
    if args.json is not None:
        args.json.write_text(json.dumps({"model": opened.name} | report.to_json(), indent=1) + "\n", encoding="utf-8")
    if not report.passed:
        parser.exit(ParityError.exit_code)


if __name__ == "__main__":
    main()
