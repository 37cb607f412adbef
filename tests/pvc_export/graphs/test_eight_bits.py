"""int8 matmuls: their inputs are rounded as torch and ONNX round them, and integer sums stay within 16 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import pvc_ref
from engines.bundle import graph_path
from engines.errors import SpecError
from engines.session import OrtSession
from engines.spec import GraphSpec, Inputs, Method, Precision, Quantization, StreamLimits, TensorSpec
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.graphs.eight_bits import ROUNDED, BlocksLinear, EightBitLinear, RowsLinear, TensorLinear, round_inputs
from pvc_export.graphs.models import loaded_model
from pvc_export.graphs.quantize import Quantizer, grid_of
from pvc_export.parity.graph_file import GraphFile
from pvc_export.terminal.console import Console
from pvc_export.terminal.quantization import FewBits
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

from ...conftest import few_layers


def how(inputs: Inputs = "rows", method: Method = "search") -> Quantization:
    return Quantization(bits=8, block=None, zero_points=False, method=method, inputs=inputs)


def inputs_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 40, generator=generator) * torch.logspace(-4, 2, 7)[:, None]
    return {"both signs": x, "not negative": x.abs(), "not positive": -x.abs(), "zeros": torch.zeros_like(x)}[kind]


def rounded_by(kind: type[EightBitLinear], x: Tensor, *, block: int | None = None) -> Tensor:
    layer = kind(x.shape[-1], 1)
    layer.block = block
    return layer.rounded(x)


KINDS = ("both signs", "not negative", "not positive", "zeros")


def require_rounded_as_by_torch(found: Tensor, x: Tensor) -> None:
    """Each row of x (L, C) with the scale that makes its largest value 127."""
    scales = (x.abs().amax(-1) / 127).clamp_min(1e-30)
    zero_points = torch.zeros(len(x), dtype=torch.int32)
    want = torch.fake_quantize_per_channel_affine(x, scales, zero_points, 0, -127, 127)
    # torch multiplies by the inverse of a scale, so a value halfway between two codes may take the other one.
    off = (found - want).abs() / scales[:, None]
    assert off.max() <= 1.001 and (off > 1e-4).float().mean() < 0.01
    assert ((found - x).abs() <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_rounded_as_torch_fakes_it_with_that_row_s_scale(kind: str) -> None:
    x = inputs_of(kind).flatten(0, 1)
    require_rounded_as_by_torch(rounded_by(RowsLinear, x), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_rounded_as_onnx_s_reference_does_and_a_clip_frame_by_frame(kind: str) -> None:
    clip = inputs_of(kind)
    x = clip[:1]
    assert torch.equal(rounded_by(TensorLinear, clip)[:1], rounded_by(TensorLinear, x))
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> one (float[1, 7, 40] x) => (float[1, 7, 40] y) {
            q, scale, zero = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, scale, zero)
        }"""
    )
    want = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]
    assert np.allclose(rounded_by(TensorLinear, x).numpy(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("inputs", ROUNDED)
def test_a_layer_in_half_precision_multiplies_in_float32_and_rounds_its_result(inputs: Inputs) -> None:
    layer = nn.Linear(40, 8)
    x = inputs_of("both signs").half()
    round_inputs(layer, inputs, block=8, scale=0.05)
    want = nn.functional.linear(layer.rounded(x.float()), layer.weight)  # type: ignore[attr-defined]
    layer.bias = nn.Parameter(layer.bias.half())
    assert torch.equal(layer(x), want.half() + layer.bias)


@pytest.mark.parametrize("method", ["round", "search"])
def test_two_products_of_any_codes_fit_in_16_bits(method: Method) -> None:
    """Without VNNI, x86 adds two products in 16 bits and saturates."""
    grid = grid_of(torch.randn(64, 96) * 3, how(method=method), torch.float32)
    codes = grid.codes(torch.randn(64, 96) * 3)
    assert grid.scales.shape == (64, 1)
    assert 2 * 255 * max(abs(grid.codes_from), grid.codes_to) < 2**15
    assert codes.min() >= grid.codes_from and codes.max() <= grid.codes_to


def test_products_of_vision_become_codes_and_a_clock_stays_float32() -> None:
    model = PVC.random(few_layers(PVCConfig.preset("tiny")), seed=0)
    quantizer = Quantizer.of(model, {"vision": how("tensor")}, "fp32", ())
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name.removesuffix(".weight") for name in quantizer.how} == {
        name for name in names if not name.startswith("llm.") and ".time_embedding." not in name
    }
    held = quantizer.model()
    assert type(held.trunk.layers[0].attn.qkv) is TensorLinear and type(held.llm.lm_head) is nn.Linear
    assert type(model.trunk.layers[0].attn.qkv) is nn.Linear, "the original model was changed"


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "in its files"])
def test_a_tied_head_becomes_codes_and_its_table_does_not(on_disk: bool, tmp_path: Path) -> None:
    config = few_layers(PVCConfig.preset("tiny"))
    model = PVC.random(replace(config, llm=replace(config.llm, tie_embeddings=True)), seed=0)
    table = model.llm.embed_tokens.weight.detach()
    if on_disk:
        pvc_ref.save(model, tmp_path / "model")
        model = pvc_ref.load(tmp_path / "model", on_disk=True)
    quantization = FewBits(int8=["head"]).of(load_target("cpu"), streams=1)
    held = Quantizer.of(model, quantization, "fp32").model()
    assert torch.equal(held.weight("llm.embed_tokens.weight"), table)
    head = held.weight("llm.lm_head.weight")
    assert 0 < (head - table).abs().max() < 0.02 * table.abs().max()
    request = ExportRequest(
        out=tmp_path / "bundle", target=load_target("cpu"), precision="fp32",
        limits=StreamLimits(window=3, context=256), quantization=quantization,
    )  # fmt: skip
    request.out.mkdir()
    write_graphs(loaded_model(model, byte_tokenizer(), name="tied"), request, request.out, Console(quiet=True))
    found = GraphFile(request.out / graph_path("head"), "head")
    codes = next(name for name in found.constants if name.endswith(".codes"))
    assert np.array_equal(found.values(codes).T, head.numpy())
    embed = GraphFile(request.out / graph_path("embed"), "embed")
    assert any(np.array_equal(embed.values(name), table.numpy()) for name in embed.constants)


def test_streams_that_share_a_pass_are_rounded_row_by_row() -> None:
    """With one scale for all streams, one camera's picture would change another camera's result."""
    target = load_target("cpu")
    alone, together = (FewBits(int8=["vision", "llm"]).of(target, streams=streams) for streams in (1, 2))
    assert {part: one.inputs for part, one in alone.items()} == {"vision": "tensor", "llm": "rows"}
    assert {one.inputs for one in together.values()} == {"rows"}


@pytest.mark.parametrize(
    "changes", [{"block": 32}, {"zero_points": True}, {"inputs": "float"}, {"bits": 4}, {"bits": 5}], ids=str
)
def test_what_no_graph_computes_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="expected.*int4 weights in blocks"):
        replace(how(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("inputs", ["rows", "tensor"])
def test_a_graph_computes_what_the_model_with_rounded_inputs_does(
    inputs: Inputs, precision: Precision, tmp_path: Path
) -> None:
    loaded = loaded_model(PVC.random(few_layers(PVCConfig.preset("tiny")), seed=0), byte_tokenizer(), name="small")
    quantization = {"vision": how(inputs)}
    request = ExportRequest(
        out=tmp_path, target=load_target("cpu"), precision=precision, limits=StreamLimits(window=3, context=256),
        quantization=quantization,
    )  # fmt: skip
    write_graphs(loaded, request, tmp_path, Console(quiet=True))
    path = tmp_path / graph_path("compressor")
    products = [node for node in GraphFile(path, "compressor").nodes if node.op_type == "MatMulInteger"]
    assert len(products) == 5, "expected matmuls: W3|W5, W4, W6 and the two of the MLP"
    held = Quantizer.of(loaded.model, quantization, precision, ()).model()
    vision = loaded.config.vision
    features = torch.randn(1, vision.num_patches, vision.hidden_size)
    want = held.compressor(features, torch.zeros(1)).detach().numpy()
    session = onnxruntime.InferenceSession(str(path))
    dtype = np.float16 if precision == "fp16" else np.float32
    feeds = {"features": features.numpy().astype(dtype), "frame_time": np.zeros(1, np.float32)}
    got = session.run(None, feeds)[0].astype(np.float32)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
    plain = loaded.model.compressor(features, torch.zeros(1)).detach().numpy()
    assert np.abs(want - plain).max() > 1e-4 * np.abs(want).max(), "rounding has no effect"


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_a_row_of_its_own(kind: str) -> None:
    x = inputs_of(kind)
    found = rounded_by(BlocksLinear, x, block=8)
    require_rounded_as_by_torch(found.reshape(-1, 8), x.reshape(-1, 8))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("num_rows", [1, 5, 64])
def test_onnx_runtime_rounds_what_a_product_of_four_bits_is_fed_block_by_block(
    num_rows: int, zero_points: bool, tmp_path: Path
) -> None:
    """From one file, with floating-point inputs and with blocks, it computes what the corresponding layer computes."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(128, 96, bias=False)
    layer.weight = nn.Parameter(torch.randn(96, 128, generator=generator), requires_grad=False)
    x = torch.randn(1, num_rows, 128, generator=generator)
    four = Quantization(block=32, zero_points=zero_points, method="search")
    grid = grid_of(layer.weight, four, torch.float32)
    codes = grid.codes(layer.weight)
    kind = onnx.TensorProto.UINT4 if zero_points else onnx.TensorProto.INT4
    parts = {"codes": (kind, codes), "scales": (onnx.TensorProto.FLOAT, grid.scales)}
    if grid.zero_points is not None:
        parts["points"] = (kind, grid.zero_points)
    constants = [
        onnx.helper.make_tensor(name, dtype, values.T.shape, values.T.flatten().tolist())
        for name, (dtype, values) in parts.items()
    ]
    nodes = [
        onnx.helper.make_node("DequantizeLinear", list(parts), ["w"], axis=0, block_size=32),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, num_rows, size]) for name, size in (("x", 128), ("y", 96))]
    graph = onnx.helper.make_graph(nodes, "one", ends[:1], ends[1:], constants)
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "one.onnx")

    def computed(inputs: Inputs) -> np.ndarray:
        spec = GraphSpec(
            name="one", dims={}, quantization=replace(four, inputs=inputs),
            inputs=(TensorSpec(name="x", dtype="float32", shape=(1, num_rows, 128)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(1, num_rows, 96)),),
        )  # fmt: skip
        session = OrtSession(tmp_path / "one.onnx", spec, threads=1)
        return np.asarray(session.run({"x": x.numpy()})["y"])

    layer.weight = nn.Parameter(grid.nearest(layer.weight), requires_grad=False)
    exact = layer(x).numpy()
    round_inputs(layer, "blocks", block=32)
    rounded = layer(x).numpy()
    assert np.abs(computed("float") - exact).max() < 1e-4
    assert np.abs(rounded - exact).max() > 0.02
    assert np.abs(computed("blocks") - rounded).max() < 1e-4
