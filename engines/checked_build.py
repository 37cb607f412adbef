"""Builds one engine from its graph and checks it against what the graph requires."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .builder import BuildOptions, EngineReport, Progress, build_engine
from .cuda import CudaRuntime
from .gate import Asked, count_attention, shows_weights
from .manifest import EngineEntry
from .target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """The engine's bytes, its (still unsigned) manifest entry, and a one-line note."""

    report: EngineReport
    entry: EngineEntry
    note: str


def build_checked(
    onnx_path: Path,
    asked: Asked,
    target: Target,
    *,
    built_from: str,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    cuda: CudaRuntime | None = None,
) -> BuiltEngine:
    """Build one engine and check its layers. built_from: the fingerprint of the graph (engines/manifest.py).

    Raises what build_engine raises, and BuildError if the engine's layers are not what its graph requires. Layers that
    the compiler does not show are not checked, and the entry records that.
    """
    report = build_engine(onnx_path, asked.spec, target, options=options, progress=progress, cuda=cuda)
    name, layers = asked.spec.name, report.layers
    if layers is not None:
        asked.hold(layers)
    fused = count_attention(layers or ())
    entry = EngineEntry(
        path=f"engines/{name}.engine",
        runtime=report.runtime,
        runtime_version=report.runtime_version,
        compute_capabilities=report.compute_capabilities,
        num_layers=len(layers or ()),
        fused_attention={} if layers is None else fused,
        build_s=round(report.build_s, 3),
        built_on="",  # filled in when the manifest is signed, once all files are known
        built_from=built_from,
        visible="nothing" if layers is None else "all" if shows_weights(layers, asked.spec) else "kernels",
    )
    facts = f"{entry.num_layers} layers, fused attention {fused['gemm']} gemm + {fused['gemv']} gemv"
    said = {"all": facts, "kernels": f"{facts}, weights not visible", "nothing": "kernels not visible"}
    return BuiltEngine(report=report, entry=entry, note=said[entry.visible])
