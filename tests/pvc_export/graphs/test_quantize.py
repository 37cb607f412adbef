"""int4 weights: the values of a block's codes, and which parts of a model become codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from engines.bundle import graph_path
from engines.errors import SpecError
from engines.spec import GRAPH_NAMES, Method, Part, Precision, Quantization, StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.graphs.models import loaded_model
from pvc_export.graphs.quantize import Grid, Quantizer, grid_of
from pvc_export.parity.graph_file import GraphFile
from pvc_export.terminal.console import Console
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

from ...conftest import few_layers

METHODS: tuple[Method, ...] = ("round", "search")


def how(*, block: int = 32, zero_points: bool = True, method: Method = "search") -> Quantization:
    return Quantization(block=block, zero_points=zero_points, method=method)


def matrix(rows: int = 40, columns: int = 128, *, seed: int = 0) -> torch.Tensor:
    """Rows of several scales, with blocks of zeros, of one sign, and with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    values[1, :32] = 0
    values[2] = values[2].abs()
    values[3] = -values[3].abs()
    values[4, 5] *= 30
    return values


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_value_takes_the_nearest_of_its_16_codes(dtype: torch.dtype, method: Method, zero_points: bool) -> None:
    weight = matrix()
    grid = grid_of(weight, how(method=method, zero_points=zero_points), dtype)
    got = grid.values(grid.codes(weight)).float()
    codes = torch.arange(0, 16) if zero_points else torch.arange(-8, 8)
    possible = torch.stack(
        [grid.values(torch.full(weight.shape, int(code), dtype=torch.int8)).float() for code in codes]
    )
    least = (possible - weight).abs().amin(0)
    # With a scale in a narrow dtype the product is rounded again, so another code may be equally near.
    rounding = torch.finfo(dtype).eps * possible.abs().amax(0)
    assert ((got - weight).abs() <= least + rounding).all()


@pytest.mark.parametrize("zero_points", [False, True])
def test_a_search_loses_less_than_rounding_to_the_largest_value_and_never_more_in_a_block(zero_points: bool) -> None:
    weight = matrix(256)
    errors = {}
    for method in METHODS:
        grid = grid_of(weight, how(method=method, zero_points=zero_points), torch.float32)
        errors[method] = (grid.nearest(weight) - weight).unflatten(-1, (-1, 32)).double().square().sum(-1)
    assert (errors["search"] <= errors["round"] + 1e-12 if zero_points else torch.tensor(True)).all()
    # Without zero points only on average: the plain grid is symmetric, the searched one reaches -8.
    assert errors["search"].sum() < 0.95 * errors["round"].sum()


def test_a_block_of_zeros_stays_zero_and_every_scale_is_above_zero() -> None:
    for zero_points in (False, True):
        for dtype in (torch.float32, torch.float16):
            weight = matrix() * 1e-5
            grid = grid_of(weight, how(zero_points=zero_points), dtype)
            assert (grid.scales > 0).all() and grid.scales.isfinite().all()
            assert (grid.nearest(weight)[1, :32] == 0).all()


def test_small_weights_lose_no_more_than_large_ones() -> None:
    weight = matrix()
    for dtype in (torch.float32, torch.bfloat16):
        losses = []
        for factor in (1.0, 2.0**-20):  # exact, and far below the range of float16
            grid = grid_of(weight * factor, how(), dtype)
            losses.append(((grid.nearest(weight * factor).float() / factor - weight) ** 2).sum())
        assert losses[0] == losses[1]


def test_the_same_block_has_the_same_grid_wherever_it_stands() -> None:
    weight = matrix(600)
    whole = grid_of(weight, how(), torch.float32)
    for start in (0, 255, 256, 599):
        part = grid_of(weight[start : start + 1], how(), torch.float32)
        assert torch.equal(part.scales, whole.scales[start : start + 1])
        assert part.zero_points is not None and whole.zero_points is not None
        assert torch.equal(part.zero_points, whole.zero_points[start : start + 1])


def dequantize_by(runtime: str, grid: Grid, codes: torch.Tensor) -> np.ndarray:
    """Dequantise codes by the DequantizeLinear of `runtime`, from the layout (inputs, outputs)."""
    coded = TensorProto.UINT4 if grid.zero_points is not None else TensorProto.INT4
    block = codes.shape[1] // grid.scales.shape[1]

    def constant(name: str, dtype: int, values: torch.Tensor) -> onnx.TensorProto:
        return helper.make_tensor(name, dtype, values.T.shape, values.T.contiguous().flatten().tolist())

    constants = [constant("codes", coded, codes), constant("scales", TensorProto.FLOAT, grid.scales)]
    if grid.zero_points is not None:
        constants.append(constant("zero_points", coded, grid.zero_points))
    node = helper.make_node("DequantizeLinear", [one.name for one in constants], ["y"], axis=0, block_size=block)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, codes.T.shape)
    graph = helper.make_graph([node], "one", [], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if runtime == "onnx.reference":
        found = onnx.reference.ReferenceEvaluator(model).run(None, {})[0]
    else:
        found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})[0]
    return np.asarray(found).T


@pytest.mark.parametrize("runtime", ["onnx.reference", "onnxruntime"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_onnx_reads_codes_as_they_are_meant(runtime: str, zero_points: bool) -> None:
    weight = matrix()
    grid = grid_of(weight, how(zero_points=zero_points), torch.float32)
    codes = grid.codes(weight)
    assert np.array_equal(dequantize_by(runtime, grid, codes), grid.values(codes).numpy())


def model_of(**llm: object) -> PVC:
    config = few_layers(PVCConfig.preset("tiny"))
    return PVC.random(replace(config, llm=replace(config.llm, **llm)), seed=0)  # type: ignore[arg-type]


def test_products_of_the_llm_become_codes_and_nothing_else_does() -> None:
    model = model_of(tie_embeddings=True)
    quantizer = Quantizer.of(model, {"llm": how()}, "fp32", ())
    layers = model.llm.layers.named_modules()
    products = {f"llm.layers.{name}.weight" for name, module in layers if isinstance(module, torch.nn.Linear)}
    assert set(quantizer.how) == products and len(products) == 7
    held = quantizer.model()
    for name, weight in model.named_parameters(remove_duplicate=False):
        assert torch.equal(held.get_parameter(name), weight) == (name not in quantizer.how), name
    assert held.llm.lm_head.weight is held.llm.embed_tokens.weight, "a tied head must stay tied"


def test_an_island_and_an_input_that_is_no_multiple_of_the_block_keep_their_dtype() -> None:
    model = model_of(mlp_size=160)
    quantizer = Quantizer.of(model, {"llm": how()}, "fp16", ("llm.layers.0.attn",))
    assert {name.split(".")[-2] for name in quantizer.how} == {"gate_proj", "up_proj", "down_proj"}
    quantizer = Quantizer.of(model, {"llm": how(block=64)}, "fp32", ())
    assert {name.split(".")[-2] for name in quantizer.how if ".mlp." in name} == {"gate_proj", "up_proj"}


@pytest.mark.parametrize("block", [0, 8, 48])
def test_a_block_that_no_runtime_takes_is_refused(block: int) -> None:
    with pytest.raises(SpecError, match=f"block has {block} values"):
        how(block=block)


CASES: list[tuple[Precision, str]] = [("fp32", "cpu"), ("fp16", "rtx"), ("bf16", "tensorrt")]


@pytest.mark.parametrize(("precision", "target_name"), CASES)
def test_a_graph_holds_the_codes_of_the_model_that_it_is_held_against(
    precision: Precision, target_name: str, tmp_path: Path
) -> None:
    model = loaded_model(model_of(tie_embeddings=precision == "fp32"), byte_tokenizer(), name="small")
    target = replace(load_target(target_name), engine_graphs=(), builder=None)
    quantization: dict[Part, Quantization] = {"llm": how(zero_points=target.int4_zero_points)}
    request = ExportRequest(
        out=tmp_path, target=target, precision=precision, limits=StreamLimits(window=3, context=256),
        quantization=quantization,
    )  # fmt: skip
    write_graphs(model, request, tmp_path, Console(quiet=True))
    quantizer = Quantizer.of(model.model, quantization, precision, ())
    rows = {row.tobytes() for name in quantizer.how for row in quantizer.read(name).numpy()}
    found = set[bytes]()
    for graph in GRAPH_NAMES:
        file = GraphFile(tmp_path / graph_path(graph), graph)
        nodes = [node for node in file.nodes if node.op_type == "DequantizeLinear"]
        assert bool(nodes) == (graph == "llm"), graph
        for node in nodes:
            found |= {row.tobytes() for row in file.values(node.output[0]).astype(np.float32).T}
    assert found == rows
