"""The vision side, rung by rung, each compared with its neighbour, so that a failure names the step that caused it.

    torch fp64 - torch fp32 (the reference) - torch in the bundle's dtype - ONNX in that dtype - engine
                           \\- ONNX fp32

The torch rungs measure the model's rounding noise, from which the limits of the others come (limits.py). Rungs run one
after another and keep only their outputs, so only one of them is in memory along with the reference. A rung that cannot
run here is listed in the report with the reason, and never counts as a pass.
On a CPU the narrow torch rung rounds every operation to its dtype, islands as exported; ONNX Runtime computes float16
in float32, and bfloat16 through widened graphs (bfloat16_on_cpu.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.builder import load_runtime
from engines.bundle import Bundle, open_bundle, require_fitting_engine
from engines.cuda import LibCudart
from engines.errors import BackendUnavailable, BundleError
from engines.session import Session
from engines.spec import VISION_GRAPHS
from engines.target import load_target
from pvc_ref import PVC

from ..graphs.sessions import open_graphs
from .engines import unverified
from .evidence import Evidence
from .places import Rung
from .recording import Frames, Progress, Recording, compare, noise_of, run_sessions, run_twin
from .rounding import Reference


def climb(
    bundle: Bundle,
    reference: Reference,
    frames: Frames,
    *,
    fp32: Recording,
    twin: Recording,
    onnx: Recording,
    twins: Path,
    progress: Progress = lambda _: None,
) -> Evidence:
    """Run the rungs that are not recorded yet, and compare neighbours.

    `bundle` may have no sessions. `fp32`, `twin` and `onnx` are the recordings of the reference, of its rounding twin
    and of the bundle's ONNX files. `twins` is a folder for graphs that are exported again in float32.
    """
    manifest = bundle.manifest
    precision, evidence = manifest.precision, Evidence()
    if precision == "fp32":
        evidence += compare(Rung("onnx", "fp32"), onnx, fp32, frames.times)
    else:
        in_float32 = Reference.of(reference.model, "fp32")
        evidence += noise_of(in_float32, fp32, run_twin(in_float32, frames, manifest.graphs["temporal"]), frames.times)
        sessions = open_twins(bundle, reference.model, VISION_GRAPHS, twins)
        wide = run_sessions(sessions, frames, progress)
        evidence += compare(Rung("onnx", "fp32"), wide, fp32, frames.times)
        evidence += compare(Rung("onnx", precision), onnx, twin, frames.times)
    if is_for_gpu(bundle):
        reason = why_not_executed(bundle)
        if reason is not None:
            return evidence + Evidence(not_executed={"engine" if manifest.engines else "cuda": reason})
        on_gpu = run_sessions(open_on_target(bundle).sessions, frames)
        if manifest.engines:
            evidence += compare(Rung("engine", precision), on_gpu, onnx, frames.times)
        evidence += compare(Rung("gpu", precision), on_gpu, fp32, frames.times)
        evidence += Evidence(not_executed={"llm and head on the GPU": "the ladder covers only the vision side"})
    return evidence


def open_twins(bundle: Bundle, reference: PVC, names: Sequence[str], folder: Path) -> dict[str, Session]:
    """Export the bundle's graphs in float32 and open them in ONNX Runtime on the CPU."""
    manifest = bundle.manifest
    return open_graphs(
        reference, names, load_target(manifest.target), manifest.limits, folder, int8_states=manifest.int8_states
    )


def is_for_gpu(bundle: Bundle) -> bool:
    """Whether the target has its own runtime; if not, the bundle's rung already is the target's."""
    return bool(bundle.manifest.engines) or load_target(bundle.manifest.target).runtime == "ort-cuda"


def why_not_executed(bundle: Bundle) -> str | None:
    """Why this machine cannot run the bundle's target; None if it can.

    It may have no GPU, the wrong GPU, or engines that it cannot verify, which are executable code. Any failure after
    this point is an error of the bundle, not a rung that could not run.
    """
    target = load_target(bundle.manifest.target)
    try:
        cuda = LibCudart()
        for entry in bundle.manifest.engines.values():
            version = str(load_runtime(target).__version__)
            require_fitting_engine(entry, bundle.folder, version=version, capability=cuda.compute_capability())
    except (BackendUnavailable, BundleError) as error:
        return error.what
    return next(iter(unverified(bundle.manifest).values()), None)


def open_on_target(bundle: Bundle) -> Bundle:
    """Open the bundle in its target's runtime."""
    return open_bundle(bundle.folder, runtime="target", unchecked=True)
