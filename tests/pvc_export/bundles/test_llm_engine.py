"""The LLM's engines, built by the real compiler: both cache updates, attention kernels, and copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

from engines.builder import EngineReport, build_engine
from engines.bundle import graph_path
from engines.errors import BuildError
from engines.gate import SLACK_VALUES, EngineLayer, check_caches, check_layers, count_attention
from engines.graph_specs import graph_specs
from engines.spec import CacheUpdate, GraphSpec, Precision, Quantization, StreamLimits
from engines.target import load_target
from pvc_export.bundles.engines import asked_of
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_export.graphs.spellings import CachesInPlace, InPlaceAttention, onnx_operator
from pvc_export.plan.bundle import plan_bundle
from pvc_export.terminal.console import Console
from pvc_ref import PVC, LLMConfig, PVCConfig
from pvc_ref.llm import rotate
from pvc_ref.temporal import KeyValue

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")


def llm_spec(model: PVC, precision: Precision, update: CacheUpdate, *, streams: int = 1) -> GraphSpec:
    limits = StreamLimits(context=512, streams=streams)
    return graph_specs(model_shape(model.config), limits, precision, cache_update=update)["llm"]


def build(model: PVC, spec: GraphSpec, folder: Path) -> EngineReport:
    path = folder / "llm.onnx"
    export_graph(graph_module(model, spec), spec, path)
    return build_engine(path, spec, load_target("rtx"))


@pytest.mark.parametrize("streams", [1, 3], ids=lambda n: f"streams={n}")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("update", ["rows", "aliased"])
def test_both_cache_updates_become_the_engine_they_ask_for(
    small: LoadedModel, tmp_path: Path, update: CacheUpdate, precision: Precision, streams: int
) -> None:
    model = cast_model(small.model, precision)
    spec = llm_spec(model, precision, update, streams=streams)
    report = build(model, spec, tmp_path)
    num_weights = sum(p.numel() for p in model.llm.layers.parameters())
    check_layers(
        report.layers, spec, num_float32_weights=asked_of(model, spec).num_float32_weights, num_weights=num_weights
    )
    fused = {"gemm": 0 if precision == "fp32" else 1, "gemv": 1 if update == "aliased" else 0}
    assert count_attention(report.layers) == fused


def test_decode_in_place_reads_a_cache_in_its_attention_and_nowhere_else(tiny: LoadedModel, tmp_path: Path) -> None:
    """In the one-row profile, no kernel produces anything as large as a cache, except the cache itself."""
    model = cast_model(tiny.model, "fp16")
    layers = build(model, llm_spec(model, "fp16", "aliased"), tmp_path).layers
    caches = {f"present.{i}.{part} [profile 1]" for i in (0, 1) for part in ("key", "value")}
    readers = [layer for layer in layers if caches & set(layer.inputs)]
    kinds = {"attention" if "_gemv_mha" in layer.name else "update" for layer in readers}
    assert kinds == {"attention", "update"}
    for layer in readers:
        assert "_gemv_mha" in layer.name or caches & set(layer.inputs) <= set(layer.outputs)


def test_two_profiles_hold_the_weights_once_unless_decode_is_compiled_for_a_single_row(tmp_path: Path) -> None:
    """Our profiles avoid the trap measured in docs/decisions/0006."""
    config = replace(
        PVCConfig.preset("tiny"),
        llm=LLMConfig(family="qwen2", vocab_size=264, hidden_size=1024, num_layers=2, num_heads=8, num_kv_heads=2,
                      mlp_size=1024, qkv_bias=True),
    )  # fmt: skip
    model = cast_model(PVC.random(config), "fp16")
    spec = llm_spec(model, "fp16", "aliased")
    weights = 2 * sum(p.numel() for p in model.llm.layers.parameters())
    report = build(model, spec, tmp_path)
    assert len(report.plan) - weights < 0.6 * weights
    # Each profile lists every constant again: at this width the islands alone exceed the slack.
    islands, num_weights = asked_of(model, spec).num_float32_weights, weights // 2
    assert islands is not None and islands > 2 * SLACK_VALUES
    check_layers(report.layers, spec, num_float32_weights=islands, num_weights=num_weights)
    with pytest.raises(BuildError, match="left in float32"):
        check_layers(report.layers, spec, num_float32_weights=islands // 4, num_weights=num_weights)
    with pytest.raises(BuildError, match="once for each of 2 profiles"):
        check_layers(report.layers, spec, num_float32_weights=islands, num_weights=num_weights * 11 // 10)
    many, one = spec.profiles
    single = replace(spec, profiles=(many, one | {"batch": many["batch"]}))
    assert len(build(model, single, tmp_path).plan) - weights > 0.9 * weights


def test_an_engine_keeps_weights_of_four_bits_in_every_profile(small: LoadedModel, tmp_path: Path) -> None:
    target = replace(load_target("rtx"), engine_graphs=("llm", "head"))
    how = Quantization(block=32, zero_points=False, method="round")
    request = ExportRequest(
        out=tmp_path, target=target, precision="fp16", limits=StreamLimits(context=512), quantization={"llm": how}
    )
    manifest = write_graphs(small, request, tmp_path, Console(quiet=True))  # the gate counts the weights
    plan = plan_bundle(small.model, request, tokenizer_bytes=0)
    for name, entry in manifest.engines.items():
        assert plan.graphs[name].engine == pytest.approx((tmp_path / entry.path).stat().st_size, rel=0.05), name
    spec = manifest.graphs["llm"]
    layers = build_engine(tmp_path / graph_path("llm"), spec, target).layers
    asked = asked_of(cast_model(small.model, "fp16"), spec)
    products = [module for module in small.model.llm.layers.modules() if isinstance(module, nn.Linear)]
    assert asked.num_codes == sum(module.weight.numel() for module in products)
    check_layers(layers, spec, num_float32_weights=asked.num_float32_weights, num_codes=asked.num_codes)
    widened = [
        replace(layer, constants=tuple((name, dtype.replace("Int4", "Half"), n) for name, dtype, n in layer.constants))
        for layer in layers[:8]
    ]
    with pytest.raises(BuildError, match="int4 weights"):
        check_layers((*widened, *layers[8:]), spec, num_float32_weights=None, num_codes=asked.num_codes)


def copying(
    self: InPlaceAttention, x: Tensor, rope: tuple[Tensor, Tensor], past: CachesInPlace, bias: Tensor
) -> tuple[Tensor, CachesInPlace]:
    """Fold query groups into rows, as the other form does: for a single token this compiler then copies the cache."""
    q, k, v = self.project(x)
    q, k = rotate(q, *rope), rotate(k, *rope)
    rows, group = q.shape[1], q.shape[2] // k.shape[2]
    q = q.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    pair: KeyValue = tuple(
        onnx_operator(
            "TensorScatter", (cache, new.transpose(1, 2), past.write_index), like=cache, axis=-2, mode="linear"
        )
        for cache, new in ((past.key, k), (past.value, v))
    )  # type: ignore[assignment]
    out = onnx_operator("Attention", (q, *pair, bias.repeat(1, 1, group, 1)), like=q)
    out = out.unflatten(2, (group, rows)).permute(0, 3, 1, 2, 4).flatten(2, 4)
    return self.o_proj(out), replace(past, key=pair[0], value=pair[1])


def test_an_attention_that_copies_the_cache_for_one_token_is_refused(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InPlaceAttention, "forward", copying)
    model = cast_model(tiny.model, "fp16")
    spec = llm_spec(model, "fp16", "aliased")
    layers = build(model, spec, tmp_path).layers
    with pytest.raises(BuildError, match="0 over one row\nexpected: 2 and 2"):
        check_layers(layers, spec, num_float32_weights=None)
    with pytest.raises(BuildError, match=r"past\.0\.key' in .*profile 1.*\n.*only fused attention.*\n.*is copied"):
        check_caches(layers, spec)


ROWS = llm_spec(PVC(PVCConfig.preset("tiny")), "fp16", "rows")
IN_PLACE = llm_spec(PVC(PVCConfig.preset("tiny")), "fp16", "aliased")


def layer(name: str, inputs: list[str], outputs: list[str]) -> EngineLayer:
    return EngineLayer(name=name, kind="kgen", inputs=tuple(inputs), constants=(), outputs=tuple(outputs))


def in_place_engine() -> list[EngineLayer]:
    """The layers that the compiler lists for one cache of an engine with both profiles."""
    cache, decode = "present.0.key", "present.0.key [profile 1]"
    return [
        layer("__myl_Scat", [cache, "q"], [cache]),
        layer("__myl_Tran", [cache], ["k"]),
        layer("_gemm_mha_v2", ["k"], ["out"]),
        layer("__myl_Scat_myl1", [decode, "q"], [decode]),
        layer("_gemv_mha_v1", [decode], ["out"]),
    ]


one_cache = replace(IN_PLACE, states=IN_PLACE.states[:1])
one_past = replace(ROWS, states=ROWS.states[:1])


def test_a_cache_that_is_updated_in_place_passes() -> None:
    check_caches(tuple(in_place_engine()), one_cache)


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        (layer("__myl_Move", ["present.0.key [profile 1]"], ["copy"]), 5),
        (layer("__myl_Move", ["present.0.key"], ["copy"]), 5),
        (layer("__myl_Scat_again", ["present.0.key [profile 1]"], ["present.0.key [profile 1]"]), 5),
    ],
    ids=["a copy in decode", "a second copy of many rows", "written twice"],
)
def test_one_more_user_of_a_cache_in_place_is_refused(wrong: EngineLayer, at: int) -> None:
    engine = in_place_engine()
    engine.insert(at, wrong)
    with pytest.raises(BuildError, match=r"past.0.key.*\n.*\n.*the whole cache is copied on every pass"):
        check_caches(tuple(engine), one_cache)


@pytest.mark.parametrize("missing", [0, 3, 4], ids=["no update", "no update in decode", "no attention in decode"])
def test_a_cache_in_place_that_is_not_used_is_refused(missing: int) -> None:
    engine = in_place_engine()
    del engine[missing]
    with pytest.raises(BuildError, match="or not used at all"):
        check_caches(tuple(engine), one_cache)


def test_unfused_float32_attention_may_read_a_cache_in_any_way_but_not_in_none() -> None:
    wide = replace(one_cache, fused_attention=replace(one_cache.fused_attention, gemm=0))
    engine = in_place_engine()
    check_caches((*engine, layer("__myl_Resh", ["present.0.key"], ["more"])), wide)
    del engine[1]
    with pytest.raises(BuildError, match="or not used at all"):
        check_caches(tuple(engine), wide)


def test_a_cache_whose_rows_are_returned_is_read_by_one_kernel() -> None:
    reader = layer("__myl_ConcTran", ["past.0.key", "k"], ["keys", "new.0.key"])
    check_caches((reader,), one_past)
    for engine in ((), (reader, layer("__myl_Repl", ["past.0.key"], ["more keys"]))):
        with pytest.raises(BuildError, match="expected: one kernel that reads it"):
            check_caches(engine, one_past)
