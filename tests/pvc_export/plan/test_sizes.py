"""A plan's sizes equal those of the built bundles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from engines import PVCStream, open_bundle
from engines.bundle import graph_path
from engines.clock import Clock
from engines.manifest import MANIFEST_NAME, Manifest
from engines.memory import Array, HostMemory, Tensor
from engines.spec import GRAPH_NAMES, Precision
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest
from pvc_export.graphs.modules import graph_module
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_export.plan.bundle import BundlePlan, plan_bundle
from pvc_export.plan.model import planned_model
from pvc_ref import PVC, PVCConfig
from pvc_ref.config import CompressorConfig

TINY = PVCConfig.preset("tiny")
BUNDLES = ("bundle_fp32", "bundle_fp16", "bundle_rows", "bundle_int4", "bundle_int8", "bundle_static", "bundle_shapes")
CLOSE = 0.02


def plan_of(manifest: Manifest, model: PVC | None = None) -> BundlePlan:
    """Plan a bundle from the names and options in its manifest."""
    planned = planned_model(manifest.model.name)
    target = load_target(manifest.target)
    if not manifest.engines:
        target = replace(target, engine_graphs=())
    request = ExportRequest(
        out=Path(), target=target, precision=manifest.precision, limits=replace(manifest.limits, num_times=None),
        clock="run-on" if manifest.limits.num_times is None else "reanchor", quantization=manifest.quantization,
    )  # fmt: skip
    return plan_bundle(model or planned.model, request, tokenizer_bytes=planned.tokenizer_bytes)


def graph_size(bundle: Path, name: str) -> int:
    return sum(path.stat().st_size for path in bundle.glob(f"{graph_path(name)}*"))


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_a_plan_knows_each_graph_each_engine_and_the_whole_bundle(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    plan = plan_of(manifest)
    for name in GRAPH_NAMES:
        assert plan.graphs[name].files == pytest.approx(graph_size(bundle, name), rel=CLOSE), name
    assert set(plan.engine_names) == set(manifest.engines)
    for name, entry in manifest.engines.items():
        assert plan.graphs[name].engine == pytest.approx((bundle / entry.path).stat().st_size, rel=0.05), name
    whole = sum(file.num_bytes for file in manifest.files.values()) + (bundle / MANIFEST_NAME).stat().st_size
    assert plan.total == pytest.approx(whole, rel=CLOSE)


def test_a_plan_of_a_model_with_one_layer_more_is_not_close(bundle_fp32: Path) -> None:
    manifest = Manifest.load(bundle_fp32)
    deeper = PVC.empty(replace(TINY, llm=replace(TINY.llm, num_layers=TINY.llm.num_layers + 1)))
    planned = plan_of(manifest, deeper).graphs["llm"].files
    assert planned > (1 + 10 * CLOSE) * graph_size(bundle_fp32, "llm")


@pytest.mark.parametrize("clock", ["run-on", "reanchor"])
def test_a_plan_knows_what_a_stream_allocates(clock: Clock, bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, allocated = open_bundle(bundle_fp16, runtime="cpu"), []
    zeros = HostMemory.zeros

    def counted(memory: HostMemory, shape: tuple[int, ...], dtype: str) -> Tensor:
        tensor = zeros(memory, shape, dtype)
        allocated.append(cast(Array, tensor).nbytes)
        return tensor

    monkeypatch.setattr(HostMemory, "zeros", counted)
    PVCStream(opened, clock=clock)
    request = ExportRequest(
        out=Path(), target=load_target("rtx"), precision="fp16", limits=opened.manifest.limits, clock=clock
    )
    planned = plan_bundle(planned_model("tiny").model, request, tokenizer_bytes=0)
    assert planned.state.total == sum(allocated)


KINDS = (
    CompressorConfig(kind="pixel_shuffle", num_tokens=16),
    CompressorConfig(kind="pool", num_tokens=6),
    CompressorConfig(kind="conv", num_tokens=4),
    CompressorConfig(kind="q_former", num_tokens=5, num_q_former_layers=3),
)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("compressor", KINDS, ids=lambda compressor: compressor.kind)
def test_a_plan_knows_compressors_of_every_kind(
    compressor: CompressorConfig, precision: Precision, tmp_path: Path
) -> None:
    config = replace(TINY, compressor=compressor)
    request = ExportRequest(out=tmp_path, target=load_target("rtx"), precision=precision)
    check_graph(config, request, "compressor", tmp_path)


@pytest.mark.parametrize("graph", ["trunk", "temporal"])
def test_a_plan_knows_deeper_graphs_in_bfloat16_with_a_table_of_times(graph: str, tmp_path: Path) -> None:
    config = replace(TINY, vision=replace(TINY.vision, num_layers=8, num_temporal_layers=3, num_heads=2))
    request = ExportRequest(out=tmp_path, target=load_target("rtx"), precision="bf16", clock="reanchor")
    check_graph(config, request, graph, tmp_path)


def test_a_plan_knows_attention_that_goes_head_by_head(tmp_path: Path) -> None:
    config = replace(TINY, vision=replace(TINY.vision, num_layers=5, num_heads=8))
    request = ExportRequest(out=tmp_path, target=load_target("cpu"), precision="fp16")
    check_graph(config, request, "trunk", tmp_path)


def check_graph(config: PVCConfig, request: ExportRequest, name: str, folder: Path) -> None:
    """Export one graph and compare its plan with the files written."""
    model = PVC.random(config, seed=1)
    spec = request.graph_specs(config)[name]
    cast = cast_model(model, request.precision)
    export_graph(graph_module(cast, spec, request.target.spelling), spec, folder / f"{name}.onnx")
    written = sum(path.stat().st_size for path in folder.glob(f"{name}.onnx*"))
    assert plan_bundle(model, request, tokenizer_bytes=0).graphs[name].files == pytest.approx(written, rel=CLOSE)
