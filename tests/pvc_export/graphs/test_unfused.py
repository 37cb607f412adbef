"""Attention that no compiler fuses: equal values, no fused kernel, and a bundle that records it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.builder import build_engine
from engines.checked_build import build_checked
from engines.errors import BuildError, BundleError
from engines.gate import GEMM_ATTENTION, GEMV_ATTENTION, EngineLayer, check_layers, count_attention
from engines.graph_specs import attention_of, graph_specs, unfused_graphs
from engines.manifest import Manifest
from engines.session import OrtSession
from engines.spec import Fusable, GraphSpec, Precision, StreamLimits
from engines.target import load_target
from pvc_export.bundles.engines import asked_of
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_export.graphs.unfused import unfused_attention
from pvc_export.parity.report import ParityReport
from pvc_ref import PVC, PVCConfig
from pvc_ref.layers import attention

from ...conftest import WINDOW, few_layers

ALL: tuple[Fusable, ...] = ("spatial", "temporal", "llm")
SMALL = few_layers(PVCConfig.preset("tiny"))
Q_FORMER = replace(SMALL, compressor=replace(SMALL.compressor, kind="q_former", num_tokens=16))


def spec_of(
    graph: str, parts: tuple[Fusable, ...], precision: Precision = "fp16", *, config: PVCConfig = SMALL
) -> GraphSpec:
    shape, limits = model_shape(config), StreamLimits(window=WINDOW, context=512)
    return graph_specs(shape, limits, precision, unfused=unfused_graphs(shape, parts))[graph]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_keys", [2, 5, 65])
def test_it_is_the_reference_s_attention_but_for_one_rounding(dtype: torch.dtype, num_keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=generator).to(dtype) for n in (4, num_keys, num_keys))
    bias = torch.where(torch.rand(1, 1, 4, num_keys, generator=generator) < 0.3, -30000.0, 0.0).to(dtype)
    for masked in (None, bias):
        wide = [x.double() for x in (q, k, v)]
        exact = attention(*wide, None if masked is None else masked.double())
        steps = torch.finfo(dtype).eps * exact.abs().max()
        own, other = ((fn(q, k, v, masked).double() - exact).abs().max() for fn in (unfused_attention, attention))
        assert own <= other + 2 * steps, "more than two roundings above the reference's error"


@pytest.mark.parametrize(
    ("precision", "graph", "parts"),
    [
        ("fp16", "temporal", ("spatial",)),
        ("fp16", "temporal", ("temporal",)),
        ("fp16", "llm", ("llm",)),
        ("bf16", "trunk", ("spatial",)),
        ("bf16", "temporal", ALL),
        ("bf16", "llm", ("llm",)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_the_compiler_fuses_none_of_what_is_to_be_unfused_and_all_else(
    small: LoadedModel,
    precision: Precision,
    graph: str,
    parts: tuple[Fusable, ...],
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model, path = cast_model(small.model, precision), tmp_path / f"{graph}.onnx"
    spec = spec_of(graph, parts, precision)
    export_graph(graph_module(model, spec), spec, path)
    built = build_checked(path, asked_of(model, spec), load_target("rtx"), built_from="")
    fused = spec_of(graph, (), precision).fused_attention
    kinds = attention_of(model_shape(SMALL))[graph]
    gone = {kind for kind in kinds if kind in parts}
    assert built.entry.fused_attention == {
        "gemm": 0 if gone & {"spatial", "llm"} else fused.gemm, "gemv": 0 if gone & {"temporal", "llm"} else fused.gemv
    }  # fmt: skip


def test_attention_in_a_compressor_is_spatial(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model, path = cast_model(PVC.random(Q_FORMER, seed=0), "fp16"), tmp_path / "compressor.onnx"
    spec = spec_of("compressor", ("spatial",), config=Q_FORMER)
    export_graph(graph_module(model, spec), spec, path)
    assert spec_of("compressor", (), config=Q_FORMER).fused_attention.gemm == 4
    assert count_attention(build_engine(path, spec, load_target("rtx")).layers or ()) == {"gemm": 0, "gemv": 0}


def test_an_engine_that_fuses_it_all_the_same_is_refused(
    small: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that recognises the spelling and fuses it would defeat the option."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("pvc_export.graphs.unfused.unfused_attention", attention)
    model, spec, path = cast_model(small.model, "fp16"), spec_of("trunk", ("spatial",)), tmp_path / "trunk.onnx"
    export_graph(graph_module(model, spec), spec, path)
    with pytest.raises(BuildError, match="has 1 fused .* although its spatial attention should be unfused") as caught:
        build_checked(path, asked_of(model, spec), load_target("rtx"), built_from="")
    assert caught.value.expected == "0 and 0" and "--island" in caught.value.fix


def test_an_island_is_held_to_its_weights_unfused_too(small: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    islands = ("temporal.layers.0.temporal_attn",)
    model, spec, path = cast_model(small.model, "fp16", islands), spec_of("temporal", ALL), tmp_path / "temporal.onnx"
    export_graph(graph_module(model, spec), spec, path)
    layers = build_engine(path, spec, load_target("rtx")).layers
    assert layers is not None
    asked = asked_of(model, spec, islands)
    asked.hold(layers)
    with pytest.raises(BuildError, match="a matrix was left in float32"):
        matrix = 64 * 256  # fc1's, as if it were not an island
        replace(asked, num_float32_weights=(asked.num_float32_weights or 0) - matrix).hold(layers)


def layer(name: str, *inputs: str, outputs: tuple[str, ...] = ()) -> EngineLayer:
    return EngineLayer(name=name, kind="kgen", inputs=inputs, constants=(), outputs=outputs)


def test_the_gate_still_holds_what_is_not_unfused_and_that_nothing_is_left_unread() -> None:
    spec = spec_of("temporal", ("temporal",))
    key, value = (state.input for state in spec.states)
    over_rows = layer(f"{GEMM_ATTENTION}_v2")
    loose = [layer("__myl_Mul", key), layer("__myl_Sum", key), layer("__myl_Mul", value)]
    check_layers((over_rows, *loose), spec, num_float32_weights=None)
    with pytest.raises(BuildError, match="0 fused attention kernels over many rows"):
        check_layers(tuple(loose), spec, num_float32_weights=None)
    with pytest.raises(BuildError, match="1 over one row, although its temporal attention should be unfused"):
        check_layers((over_rows, layer(f"{GEMV_ATTENTION}_v1", key, value)), spec, num_float32_weights=None)
    with pytest.raises(BuildError, match=rf"reads the ring '{value}' in no kernel"):
        check_layers((over_rows, *loose[:2]), spec, num_float32_weights=None)
    spec = spec_of("llm", ("llm",))
    loose = [layer("__myl_Mul", state.input) for state in spec.states]
    check_layers((*loose, *loose), spec, num_float32_weights=None)
    with pytest.raises(BuildError, match="uses the cache 'past.0.key' in no kernel"):
        check_layers(tuple(loose[1:]), spec, num_float32_weights=None)


def test_a_bundle_of_it_passes_its_check_has_no_fused_kernel_and_says_so(
    bundle_unfused: Path, report_of: object
) -> None:
    report: ParityReport = report_of(bundle_unfused)  # type: ignore[operator]
    structure = [rule for rule in report.rules if rule.name.startswith("structure of")]
    assert report.passed and len(structure) == 6 and all(rule.passed for rule in structure)
    manifest = Manifest.load(bundle_unfused)
    assert manifest.unfused == {"trunk": ("spatial",), "temporal": ("spatial", "temporal"), "llm": ("llm",)}
    assert {name: manifest.graphs[name].unfused for name in manifest.unfused} == manifest.unfused
    assert all(engine.fused_attention == {"gemm": 0, "gemv": 0} for engine in manifest.engines.values())


def test_a_manifest_of_before_it_loads_and_one_that_contradicts_its_graphs_does_not(
    bundle_fp16: Path, bundle_unfused: Path, tmp_path: Path
) -> None:
    facts = json.loads((bundle_fp16 / "manifest.json").read_text())
    del facts["unfused"]
    for spec in facts["graphs"].values():
        del spec["unfused"]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    assert Manifest.load(tmp_path) == Manifest.load(bundle_fp16) and Manifest.load(tmp_path).unfused == {}
    facts = json.loads((bundle_unfused / "manifest.json").read_text())
    for wrong in ({}, {**facts["unfused"], "head": ["llm"]}, {**facts["unfused"], "trunk": ["temporal"]}):
        (tmp_path / "manifest.json").write_text(json.dumps(facts | {"unfused": wrong}))
        with pytest.raises(BundleError):
            Manifest.load(tmp_path)


def test_fused_and_unfused_graphs_of_one_model_return_the_same(small: LoadedModel, tmp_path: Path) -> None:
    found = []
    for parts in ((), ALL):
        spec, path = spec_of("trunk", parts, "fp32"), tmp_path / f"trunk{len(parts)}.onnx"
        export_graph(graph_module(small.model, spec), spec, path)
        frame = np.random.default_rng(0).integers(0, 256, spec.input("frame").shape, np.uint8)
        found.append(OrtSession(path, spec).run({"frame": frame})["trunk_features"])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-5)  # worst 2e-6, of values up to 4


def test_weights_that_another_graph_has_not_are_not_shared(small: LoadedModel, tmp_path: Path) -> None:
    own, other = tmp_path / "trunk.onnx", tmp_path / "trunk.unfused.onnx"
    spec = spec_of("trunk", ("spatial",))
    model = cast_model(small.model, "fp16")
    export_graph(graph_module(model, spec_of("trunk", ())), spec_of("trunk", ()), own)
    export_graph(graph_module(model, spec), spec, other, beside=own)
    assert not other.with_name("trunk.unfused.onnx.data").exists() and other.stat().st_size < own.stat().st_size * 2
    assert onnx.load(other).graph.initializer, "the graph cannot be read with its weights"
    with torch.no_grad():
        model.trunk.layers[0].mlp.fc1.weight[0, 0] += 1  # type: ignore[union-attr,index,operator]
    with pytest.raises(BuildError, match="is not among the weights of trunk.onnx"):
        export_graph(graph_module(model, spec), spec, other, beside=own)
