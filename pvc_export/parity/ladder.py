"""The vision side, rung by rung: each against its neighbour, so that a failure names the step that made it.

    torch fp64 - torch fp32 (the reference) - torch in the bundle's dtype - ONNX in that dtype - engine
                           \\- ONNX fp32

Unusual: rungs run one after another and keep what they returned, so that only one of them is in memory beside the
reference. What cannot run here is not left out: the report names it, with the reason, and it is never a pass.
On a CPU the narrow torch rung rounds every operation to its dtype, islands as exported; ONNX Runtime computes float16
in float32, and bfloat16 through widened graphs (bfloat16_on_cpu.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engines.builder import load_runtime
from engines.bundle import Bundle, open_bundle, require_fitting_engine
from engines.cuda import LibCudart
from engines.errors import BackendUnavailable, BundleError, ParityError
from engines.graph_specs import graph_specs
from engines.memory import Array
from engines.session import OrtSession, Session
from engines.spec import VISION_GRAPHS, GraphSpec, StreamLimits
from engines.target import Target, load_target
from engines.vision import VisionEncoder
from pvc_ref import PVC, VisionState

from ..graphs.modules import graph_module, model_shape
from ..graphs.onnx_file import export_graph
from ..graphs.precision import cast_model
from .float16_on_cpu import Float16Products
from .metrics import Difference, compare_arrays
from .recorded_sessions import Calls, Recorder

LARGEST_FP64 = 20_000_000
"""Parameters of a small model. Beyond, float64 would take minutes and twice the reference's memory."""

Progress = Callable[[float], None]
"""Called with the fraction done, 0 to 1."""
Recording = list[dict[str, Array]]
"""For every frame, each output of the vision graphs as 'graph/tensor'."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """What every rung is shown: pixels uint8 (S, S, 3) RGB, and the time of each frame.

    Times run 0, 1, 2, ... and then jump ahead by multiples of the window, so that slots stay where they are.
    """

    pixels: Sequence[Array]
    times: Sequence[int]
    total_frames: int | None

    @property
    def num_consecutive(self) -> int:
        """Frames before the clock jumps: one clip."""
        return sum(index == time for index, time in enumerate(self.times))


def climb(
    bundle: Bundle,
    reference: PVC,
    frames: Frames,
    *,
    fp32: Recording,
    onnx: Recording,
    twins: Path,
    progress: Progress = lambda _: None,
) -> tuple[list[Difference], dict[str, str]]:
    """Run the rungs that are not recorded yet, and compare neighbours.

    `fp32` is what the reference returned and `onnx` what the bundle's ONNX files did; `twins` is a folder for graphs
    that are exported once more in float32. Returns the differences, and which rungs were not executed, and why.
    """
    precision, window = bundle.manifest.precision, bundle.manifest.limits.window
    temporal = bundle.manifest.graphs["temporal"]
    found: list[Difference] = []
    not_executed: dict[str, str] = {}

    def compare(stage: str, got: Recording, want: Recording) -> None:
        found.extend(compare_recordings(stage, got, want, frames.times))

    if is_small(reference):
        compare("torch fp32", fp32, run_torch(copy.deepcopy(reference).double(), frames, window, temporal))
    else:
        not_executed["torch fp64"] = f"more than {LARGEST_FP64 // 10**6} M parameters"
    if precision == "fp32":
        compare("onnx fp32", onnx, fp32)
    else:
        cast = cast_model(reference, precision, bundle.manifest.islands)
        narrow = run_torch(cast, frames, window, temporal, lambda x: progress(0.5 * x))
        compare(f"torch {precision}", narrow, fp32)
        twin = open_twins(bundle, reference, VISION_GRAPHS, twins)
        compare("onnx fp32", run_sessions(twin, frames, lambda x: progress(0.5 + 0.5 * x)), fp32)
        compare(f"onnx {precision}", onnx, narrow)
    if is_for_gpu(bundle):
        reason = why_not_executed(bundle)
        if reason is not None:
            not_executed["engine" if bundle.manifest.engines else "cuda"] = reason
        else:
            on_gpu = run_sessions(open_on_target(bundle).sessions, frames)
            if bundle.manifest.engines:
                compare(f"engine {precision}", on_gpu, onnx)
            compare(f"gpu {precision}", on_gpu, fp32)
            not_executed["llm and head on the GPU"] = "the ladder is the vision side's"
    return found, not_executed


def is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGEST_FP64


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """One torch thread for a small model: its operations gain nothing from a second, and on a busy machine each waits
    for it (0.4 s a frame of `tiny` in place of 0.02)."""
    before = torch.get_num_threads()
    if is_small(model):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def run_torch(
    model: PVC, frames: Frames, window: int, temporal: GraphSpec, progress: Progress = lambda _: None
) -> Recording:
    """The reference's streaming form, in the model's own dtype."""
    names = [state.output for state in temporal.states]
    state: VisionState | None = None
    recording: Recording = []
    for pixels, time in zip(frames.pixels, frames.times, strict=True):
        if state is not None:
            state = VisionState(past=state.past, num_frames=time)
        with Float16Products():
            outputs, state = model.frame_outputs(
                torch.from_numpy(pixels)[None], state, window=window, total_frames=frames.total_frames
            )
        rows = [row for pair in outputs.new for row in pair]
        tensors = {"trunk/trunk_features": outputs.trunk_features, "temporal/features": outputs.features}
        tensors |= {f"temporal/{name}": row for name, row in zip(names, rows, strict=True)}
        tensors["compressor/frame_embeds"] = outputs.frame_embeds
        recording.append({name: to_numpy(tensor) for name, tensor in tensors.items()})
        progress(len(recording) / len(frames.times))
    return recording


def open_twins(bundle: Bundle, reference: PVC, names: Sequence[str], folder: Path) -> dict[str, Session]:
    """Graphs like the bundle's, but in float32, exported for a check, and run by ONNX Runtime's CPU."""
    return open_graphs(reference, names, load_target(bundle.manifest.target), bundle.manifest.limits, folder)


def open_graphs(
    model: PVC,
    names: Sequence[str],
    target: Target,
    limits: StreamLimits,
    folder: Path,
    *,
    threads: int | None = None,
) -> dict[str, Session]:
    """Some graphs of a float32 model, spelled for `target`, opened on the CPU.

    They are written into `folder`, which holds graphs of nothing else: one that is there already is only opened.
    """
    shape = model_shape(model.config)
    specs = graph_specs(shape, limits, "fp32", target.spelling, cache_update=target.cache_update)
    sessions: dict[str, Session] = {}
    for name in names:
        path = folder / f"{name}.onnx"
        if not path.exists():
            export_graph(graph_module(model, specs[name], target.spelling), specs[name], path)
        sessions[name] = OrtSession(path, specs[name], threads=threads)
    return sessions


def is_for_gpu(bundle: Bundle) -> bool:
    """Whether its target has a runtime of its own: else the bundle's own rung is that of its target."""
    return bool(bundle.manifest.engines) or load_target(bundle.manifest.target).runtime == "ort-cuda"


def why_not_executed(bundle: Bundle) -> str | None:
    """Why this machine cannot run the bundle's target: no GPU, or not the one; None if it can.

    Whatever goes wrong after that is an error of the bundle, and not a rung left out.
    """
    target = load_target(bundle.manifest.target)
    try:
        cuda = LibCudart()
        for entry in bundle.manifest.engines.values():
            version = str(load_runtime(target).__version__)
            require_fitting_engine(entry, bundle.folder, version=version, capability=cuda.compute_capability())
    except (BackendUnavailable, BundleError) as error:
        return str(error)
    return None


def open_on_target(bundle: Bundle) -> Bundle:
    """The bundle as its target runs it. The engines were built here a moment ago, or their owner asked for this check:
    they are trusted."""
    return open_bundle(bundle.folder, runtime="target", trust_engines=True, unchecked=True)


def run_sessions(sessions: Mapping[str, Session], frames: Frames, progress: Progress = lambda _: None) -> Recording:
    """Any set of vision sessions, through the encoder that streams use."""
    recorder = Recorder({name: sessions[name] for name in VISION_GRAPHS})
    encoder = VisionEncoder(recorder.sessions, time_divisor=frames.total_frames or 1)
    for index, (pixels, time) in enumerate(zip(frames.pixels, frames.times, strict=True)):
        encoder.ring.num_frames = time
        encoder.commit(encoder.encode(pixels))
        progress((index + 1) / len(frames.times))
    return recording_of(recorder.calls)


def recording_of(calls: Calls) -> Recording:
    """The vision side of recorded calls, frame by frame."""
    return [
        {f"{graph}/{name}": array for graph, outputs in zip(VISION_GRAPHS, frame, strict=True)
         for name, array in outputs.items()}
        for frame in zip(*(calls[graph] for graph in VISION_GRAPHS), strict=True)
    ]  # fmt: skip


def compare_recordings(stage: str, got: Recording, want: Recording, times: Sequence[int]) -> list[Difference]:
    """Every tensor of every frame."""
    found = []
    for mine, theirs, time in zip(got, want, times, strict=True):
        for name, value in theirs.items():
            graph, tensor = name.split("/")
            where = f"frame {time}"
            require_same_shape(mine[name], value, name, where)
            found.append(compare_arrays(mine[name], value, stage=stage, graph=graph, tensor=tensor, where=where))
    return found


def require_same_shape(got: Array, want: Array, name: str, where: str) -> None:
    """Raise ParityError where nothing can be compared."""
    if got.shape != want.shape:
        raise ParityError(
            f"'{name}' is {got.shape} at {where}, the reference's {want.shape}. The runtime fed other rows than the "
            "reference: a different prompt, frame count or chunk"
        )


def to_numpy(tensor: torch.Tensor) -> Array:
    """numpy has no bfloat16: its values become float32, exactly."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
