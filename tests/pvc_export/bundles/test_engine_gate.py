"""The gate on an engine's layer list must fail for planted regressions built by the real compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engines.builder import build_engine
from engines.errors import BuildError
from engines.gate import EngineLayer, WideAttention, check_layers, count_attention, parse_layers
from engines.graph_specs import graph_specs
from engines.spec import FusedAttention, StreamLimits
from engines.target import load_target
from pvc_export.bundles.engines import asked_of
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_ref import PVC, PVCConfig
from pvc_ref.config import CompressorKind
from pvc_ref.layers import MLP, upcast
from pvc_ref.temporal import KeyValue, TemporalAttention

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")


@pytest.fixture
def half(tiny: LoadedModel) -> PVC:
    return cast_model(tiny.model, "fp16")


SPEC = graph_specs(model_shape(PVCConfig.preset("tiny")), StreamLimits(), "fp16")["temporal"]


def build(model: PVC, folder: Path) -> tuple[EngineLayer, ...]:
    """Export the temporal graph, build it, and return the engine's layers."""
    path = folder / "temporal.onnx"
    export_graph(graph_module(model, SPEC), SPEC, path)
    return build_engine(path, SPEC, load_target("rtx")).layers


def test_the_graph_as_we_export_it_passes(half: PVC, tmp_path: Path) -> None:
    layers = build(half, tmp_path)
    num_weights = sum(parameter.numel() for parameter in half.temporal.parameters())
    check_layers(layers, SPEC, num_float32_weights=asked_of(half, SPEC).num_float32_weights, num_weights=num_weights)
    assert count_attention(layers) == {"gemm": 2, "gemv": 2}
    rings = {name for layer in layers if "_gemv_mha" in layer.name for name in layer.inputs if name.startswith("past.")}
    assert rings == {f"past.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")}


def test_bfloat16_engines_fuse_the_same_attentions_and_keep_the_same_islands(tiny: LoadedModel, tmp_path: Path) -> None:
    model = cast_model(tiny.model, "bf16")
    spec = graph_specs(model_shape(tiny.config), StreamLimits(), "bf16")["temporal"]
    path = tmp_path / "temporal.onnx"
    export_graph(graph_module(model, spec), spec, path)
    layers = build_engine(path, spec, load_target("rtx")).layers
    check_layers(layers, spec, num_float32_weights=asked_of(model, SPEC).num_float32_weights)
    dtypes = {dtype for layer in layers for _, dtype, count in layer.constants if count > 2048}
    assert dtypes == {"BFloat16", "Float"}, dtypes


@pytest.mark.parametrize("kind", ["pvc", "pixel_shuffle", "pool", "conv", "q_former"])
def test_every_kind_of_compressor_becomes_the_engine_it_asked_for(kind: CompressorKind, tmp_path: Path) -> None:
    config = PVCConfig.preset("tiny")
    config = replace(config, compressor=replace(config.compressor, kind=kind, num_tokens=16))
    model = cast_model(PVC.random(config), "fp16")
    spec = graph_specs(model_shape(config), StreamLimits(), "fp16")["compressor"]
    path = tmp_path / "compressor.onnx"
    export_graph(graph_module(model, spec), spec, path)
    layers = build_engine(path, spec, load_target("rtx")).layers
    num_weights = sum(parameter.numel() for parameter in model.compressor.parameters())
    num_float32 = asked_of(model, spec).num_float32_weights
    check_layers(layers, spec, num_float32_weights=num_float32, num_weights=num_weights)
    assert spec.fused_attention.gemm == (4 if kind == "q_former" else 0)


def split_attention(self: TemporalAttention, x: Tensor, past: KeyValue, bias: Tensor) -> tuple[Tensor, KeyValue]:
    """Concatenate scores, not caches: fast in ONNX Runtime on the CPU, but not fused by this compiler."""
    q, k_new, v_new = (y.unflatten(-1, (self.num_heads, -1)) for y in self.qkv(x).chunk(3, dim=-1))
    q, k, v, k_past, v_past = (y.permute(0, 2, 3, 1, 4) for y in (q, k_new, v_new, *past))
    q = q * q.shape[-1] ** -0.5
    scores = torch.cat([q @ k_past.transpose(-1, -2), q @ k.transpose(-1, -2)], dim=-1) + bias[:, None, None]
    weights = torch.softmax(upcast(scores), dim=-1).to(x.dtype)
    window = k_past.shape[-2]
    out = weights[..., :window] @ v_past + weights[..., window:] @ v
    return self.proj(out.permute(0, 3, 1, 2, 4).flatten(3)), (k_new, v_new)


def test_the_split_spelling_falls_apart_and_is_refused(
    half: PVC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TemporalAttention, "forward", split_attention)
    layers = build(half, tmp_path)
    with pytest.raises(
        BuildError, match="0 over one row\nexpected: 2 and 2\nlikely: an attention was split into separate kernels"
    ):
        check_layers(layers, SPEC, num_float32_weights=None)


def test_an_attention_operator_of_opset_24_copies_the_ring_and_is_refused(
    half: PVC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        flat = (y.flatten(0, 1) for y in (q, k, v))
        return F.scaled_dot_product_attention(*flat, attn_mask=bias[:, 0]).unflatten(0, q.shape[:2])

    monkeypatch.setattr("engines.needs.OPSET", 24)
    monkeypatch.setattr(TemporalAttention, "mix", staticmethod(fused))
    layers = build(half, tmp_path)
    # The counts differ too, so take them as expected: the copied ring alone must be detected.
    spec = replace(SPEC, fused_attention=FusedAttention(**count_attention(layers)))
    assert spec.fused_attention.gemv == 2
    with pytest.raises(BuildError, match=r"reads the ring 'past\.0\.key' in .*\nexpected: one fused attention"):
        check_layers(layers, spec, num_float32_weights=None)


def test_one_matrix_left_in_float32_is_refused(half: PVC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = half.temporal.layers[0].mlp
    mlp.fc1.float()  # type: ignore[union-attr,operator]

    def forward(self: MLP, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))).to(x.dtype))

    monkeypatch.setattr(MLP, "forward", forward)
    layers = build(half, tmp_path)
    islands = sum(p.numel() for p in half.temporal.parameters() if p.dtype == torch.float32)
    islands -= sum(p.numel() for p in mlp.fc1.parameters())  # type: ignore[union-attr]
    with pytest.raises(BuildError, match="a matrix was left in float32"):
        check_layers(layers, SPEC, num_float32_weights=islands)


LINE = (
    "Name: _gemv_mha_v1_myl0_1, LayerType: kgen, Inputs: [ { Name: past.0.key, Dimensions: [1,8,65,4,16], "
    "Strides: [33280,4160,64,16,1], StrideOrder: [4,3,2,1,0], Datatype: Half, Format: (Linear) Row major linear format "
    "}], Constants: [ { Name: c, Dimensions: [3,4], Strides: [4,1], StrideOrder: [1,0], Datatype: Float, Format: x "
    "}], Outputs: [ { Name: out, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Half, Format: x }]"
)


def test_a_line_of_the_log_is_read_in_full() -> None:
    (layer,) = parse_layers(f"something else\n{LINE}\nTotal Weights Memory: 7")
    assert layer == EngineLayer(
        name="_gemv_mha_v1_myl0_1",
        kind="kgen",
        inputs=("past.0.key",),
        constants=(("c", "Float", 12),),
        outputs=("out",),
    )


@pytest.mark.parametrize("log", ["", "no layer here", "name: x, layerType: y"], ids=["empty", "text", "other case"])
def test_a_log_without_layers_fails(log: str) -> None:
    with pytest.raises(BuildError, match="lists no layers"):
        parse_layers(log)


def test_a_layer_in_another_format_fails() -> None:
    with pytest.raises(BuildError, match="cannot be read"):
        parse_layers(LINE.replace("Outputs: [", "Results: ["))


def test_a_list_that_leaves_weights_out_says_nothing_of_their_precision_and_is_refused() -> None:
    (layer,) = parse_layers(LINE)
    spec = replace(SPEC, states=SPEC.states[:1], fused_attention=FusedAttention(gemv=1))
    check_layers((layer,), spec, num_float32_weights=None, num_weights=12)
    with pytest.raises(BuildError, match=r"lists 12 constants.*\nexpected: the graph's 13 weights"):
        check_layers((layer,), spec, num_float32_weights=None, num_weights=13)


def test_a_ring_that_two_kernels_read_is_refused() -> None:
    (layer,) = parse_layers(LINE)
    spec = replace(SPEC, states=SPEC.states[:1], fused_attention=FusedAttention(gemv=1))
    check_layers((layer,), spec, num_float32_weights=0)
    copying = replace(layer, name="__myl_Move")
    with pytest.raises(BuildError, match=r"reads the ring 'past\.0\.key' in \['_gemv.*', '__myl_Move'\]"):
        check_layers((layer, copying), spec, num_float32_weights=0)


def test_only_attention_that_an_island_asked_for_may_fall_apart_or_have_its_ring_copied() -> None:
    (layer,) = parse_layers(LINE)
    spec = replace(SPEC, states=SPEC.states[:2], fused_attention=FusedAttention(gemm=2, gemv=1))
    fused = EngineLayer(name="_gemm_mha_v2", kind="kgen", inputs=(), constants=())
    copying = replace(layer, name="__myl_Move")
    wide = WideAttention(num_rows=1, states=frozenset(state.input for state in spec.states))
    check_layers((copying, fused), spec, num_float32_weights=None, wide=wide)
    check_layers((layer, fused, fused), spec, num_float32_weights=None, wide=wide)  # it may still be fused
    with pytest.raises(BuildError, match="0 fused attention kernels over many rows"):
        check_layers((copying,), spec, num_float32_weights=None, wide=wide)
    with pytest.raises(BuildError, match="0 over one row\nexpected: 2 and 1"):
        check_layers((copying, fused), spec, num_float32_weights=None, wide=WideAttention(num_rows=1))
