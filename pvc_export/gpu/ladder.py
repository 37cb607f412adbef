"""Step 5: every output of the vision graphs, computed on the card, compared with the neighbouring rung of the ladder
within limits from this model's rounding; and torch on the card compared with the float32 reference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engines.bundle import open_graphs
from engines.manifest import Manifest
from engines.runtime_cache import cache_folder
from engines.spec import GraphSpec, Precision, StreamLimits
from engines.target import load_target
from pvc_ref import PVCConfig
from pvc_ref.preprocess import resize_frame

from ..bundles.export import ExportRequest
from ..graphs.models import load_model
from ..graphs.precision import cast_model
from ..graphs.quantize import as_held
from ..parity.bfloat16_on_cpu import open_on_cpu
from ..parity.clip import check_clip
from ..parity.evidence import Evidence
from ..parity.limits import NoiseTable, Row, worst_rows
from ..parity.places import Rung
from ..parity.recording import (
    EMBEDS,
    FEATURES,
    TRUNK_FEATURES,
    Frames,
    Recording,
    check_frames,
    compare,
    noise_of,
    run_sessions,
    run_torch,
    run_twin,
    to_numpy,
    window_of,
)
from ..parity.rounding import Reference
from ..terminal.console import size_text
from .hardware import Hardware
from .section import Found

LEFT = (TRUNK_FEATURES, FEATURES, EMBEDS)
"""Tensors that a torch step copies to the host per frame."""


def climb_bundle(hardware: Hardware, model: str, folder: Path) -> Found:
    """Compare ONNX on the CPU, the engine (or the runtime's graphs) on the card, and the card with torch float32."""
    manifest = Manifest.load(folder)
    precision, temporal = manifest.precision, manifest.graphs["temporal"]
    held = as_held(load_model(model), manifest)
    reference, frames = Reference.of(held.model, precision, manifest.islands), check_frames(manifest)
    own = run_torch(reference.model, frames, temporal)
    twin = run_twin(reference, frames, temporal)
    with open_on_cpu(folder) as bundle:
        onnx = run_sessions(bundle.sessions, frames)
    graphs = open_graphs(folder, runtime="target", cuda=hardware.cuda())
    on_card = run_sessions(graphs.sessions, frames)
    evidence = noise_of(reference, own, twin, frames.times)
    evidence += compare(Rung("onnx", precision), onnx, own if precision == "fp32" else twin, frames.times)
    if manifest.engines:
        evidence += compare(Rung("engine", precision), on_card, onnx, frames.times)
    evidence += compare(Rung("gpu", precision), on_card, own, frames.times)
    found = judged(evidence, num_frames=len(frames.times), runs_on=graphs.runs_on)
    return replace(found, facts=(*found.facts, *_kernels(folder)))


def _kernels(folder: Path) -> list[tuple[str, str]]:
    """Fact about the kernels that the first start compiled, if the runtime compiles any."""
    kept = cache_folder(folder)
    if not kept.is_dir():
        return []
    num_bytes = sum(path.stat().st_size for path in kept.iterdir())
    return [("kernels compiled here", f"{size_text(num_bytes)}, kept for later starts in {kept.name}")]


def climb_torch(hardware: Hardware, model: str, precision: Precision) -> Found:
    """Check the PyTorch model, cast and moved to the card."""
    loaded = load_model(model)
    request = ExportRequest(out=Path(), target=load_target("cuda"), precision=precision, limits=StreamLimits())
    temporal = request.graph_specs(loaded.config)["temporal"]
    reference, frames = Reference.of(loaded.model, precision), _frames(loaded.config, request)
    own, twin = run_torch(loaded.model, frames, temporal), run_twin(reference, frames, temporal)
    moved = run_on(cast_model(loaded.model, precision, ()), frames, temporal, hardware.torch_device)
    evidence = noise_of(reference, own, twin, frames.times)
    on_cpu = [{name: frame[name] for name in LEFT} for frame in own]
    evidence += compare(Rung("gpu", precision), moved, on_cpu, frames.times)
    return judged(evidence, num_frames=len(frames.times), runs_on=f"torch on {hardware.torch_device}")


def _frames(config: PVCConfig, request: ExportRequest) -> Frames:
    clip = check_clip(2 * request.limits.window + 2)
    pixels = [resize_frame(frame[..., ::-1], size=config.vision.image_size) for frame in clip]
    return Frames(
        pixels=pixels, times=range(len(clip)), total_frames=len(clip) if config.time_mode == "fixed" else None
    )


@torch.no_grad()
def run_on(model: torch.nn.Module, frames: Frames, temporal: GraphSpec, device: str) -> Recording:
    """Outputs of the streaming reference on a device, per frame: trunk features, features, embeddings."""
    step = streaming_step(model, temporal, device, total_frames=frames.total_frames)
    return [step(pixels) for pixels in frames.pixels]


def streaming_step(
    model: torch.nn.Module, temporal: GraphSpec, device: str, *, total_frames: int | None = None
) -> Callable[[Any], dict[str, Any]]:
    """A function to call with each frame (S, S, 3) uint8 RGB of one stream, in order. Its results are on the host."""
    moved: Any = model.to(device)
    window, state = window_of(temporal), None

    @torch.no_grad()
    def step(pixels: Any) -> dict[str, Any]:
        nonlocal state
        with torch.device(device):  # tensors that modules create are created there
            found, state = moved.frame_features(
                torch.from_numpy(pixels)[None].to(device), state, window=window, total_frames=total_frames
            )
            embeds = moved.compressor(found.features, found.times)
        tensors = zip(LEFT, (found.trunk_features, found.features, embeds), strict=True)
        return {name: to_numpy(tensor.cpu()) for name, tensor in tensors}

    return step


def judged(evidence: Evidence, *, num_frames: int, runs_on: str) -> Found:
    """Judge the evidence against its limits. The noise floor, measured from this model, has a ceiling."""
    noise = NoiseTable(evidence.differences)
    rows = worst_rows(map(noise.judged, evidence.differences))
    rungs: dict[Rung, list[Row]] = {}
    for row in rows:
        rungs.setdefault(row.rung, []).append(row)
    facts, data = [("runs on", runs_on), ("frames", str(num_frames))], {}
    for rung, members in rungs.items():
        worst = max(members, key=lambda row: row.share())
        word = "within its limits" if worst.passed else "DIFFERS"
        facts.append((f"{rung} against {rung.neighbour}", f"{word}: {worst.name}, {worst.text()}"))
        data[str(rung)] = [row.to_json() for row in members]
    wrong = [row for row in rows if not row.passed]
    return Found(
        facts=tuple(facts),
        data=data,
        state="failed" if wrong else "shown",
        error=f"{wrong[0].name} differs: {wrong[0].text()}" if wrong else "",
    )
