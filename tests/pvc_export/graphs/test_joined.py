"""Joined matmuls that share an input: same weights and arithmetic, fewer matmuls, and faults that keep their name."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engines.bundle import graph_path
from engines.graph_specs import graph_specs
from engines.manifest import Manifest
from engines.spec import CacheUpdate, GraphSpec, Spelling, StreamLimits
from pvc_export.controls.graph_edits import edit_graph
from pvc_export.graphs.joined import PARTS, joined, part_at
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.precision import cast_model, spelled
from pvc_export.graphs.spellings import CACHE_UPDATES
from pvc_export.parity.culprit.find import find_culprit
from pvc_export.parity.weights import compare_weights
from pvc_ref import PVC, PVCConfig

PRODUCTS = {"Gemm", "MatMul"}


def specs_of(model: PVC) -> dict[str, GraphSpec]:
    return graph_specs(model_shape(model.config), StreamLimits(), "fp32")


def num_products(path: Path) -> int:
    """Number of matmuls that have a weight."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return sum(node.op_type in PRODUCTS and bool(weights & set(node.input)) for node in graph.node)


def test_the_joined_model_computes_what_the_reference_does(tiny: LoadedModel) -> None:
    """Compared in float64, so that only the arithmetic matters."""
    model = copy.deepcopy(tiny.model).double()
    generator = torch.Generator().manual_seed(0)
    rows, ids = torch.randn(2, 7, 64, dtype=torch.float64, generator=generator), torch.arange(7).expand(2, -1)
    z, x = torch.randn(2, 3, 5, 64, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        (want, past), (got, new) = model.llm(rows, ids), joined(model.llm)(rows, ids)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        for pair, other in zip(past, new, strict=True):
            torch.testing.assert_close(pair, other, rtol=0, atol=1e-12)
        adaln = model.temporal.layers[0].adaln
        torch.testing.assert_close(joined(adaln)(x, z), adaln(x, z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_a_layer_has_one_product_for_each_of_its_inputs(
    bundle_name: str, request: pytest.FixtureRequest, tiny: LoadedModel
) -> None:
    """LLM: q|k|v, o, gate|up, down. Temporal: qkv, proj, fc1, fc2 in a frame, qkv, proj over time, AdaLN 3, time 2."""
    folder, config = request.getfixturevalue(bundle_name), tiny.config
    assert num_products(folder / graph_path("llm")) == 4 * config.llm.num_layers
    assert num_products(folder / graph_path("temporal")) == 11 * config.vision.num_temporal_layers
    assert num_products(folder / graph_path("compressor")) == 3 + 2 + 2  # AdaLN, time, MLP
    kinds = Counter(node.op_type for node in onnx.load(folder / graph_path("llm"), load_external_data=False).graph.node)
    assert kinds["Split"] >= 2 * config.llm.num_layers


def test_a_joined_weight_is_its_parts_one_after_the_other_and_all_else_is_shared(tiny: LoadedModel) -> None:
    before = str(tiny.model.llm)
    whole, layer = joined(tiny.model.llm), tiny.model.llm.layers[1]
    attn = whole.layers[1].attn
    parts = [layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj]
    assert torch.equal(attn.qkv_proj.weight, torch.cat([part.weight for part in parts]))
    assert torch.equal(attn.qkv_proj.bias, torch.cat([part.bias for part in parts]))
    assert attn.o_proj.weight is layer.attn.o_proj.weight and not hasattr(attn, "q_proj")
    assert str(tiny.model.llm) == before, "the reference was changed"


@pytest.mark.parametrize(("update", "spelling"), CACHE_UPDATES)
def test_a_part_that_is_an_island_by_itself_stays_a_product_of_its_own(
    tiny: LoadedModel, update: CacheUpdate, spelling: Spelling
) -> None:
    model = cast_model(tiny.model, "fp16", ("llm.layers.0.attn.k_proj", "llm.layers.1.mlp"))
    llm = joined(spelled(model.llm, CACHE_UPDATES[update, spelling]))
    assert hasattr(llm.layers[0].attn, "k_proj") and hasattr(llm.layers[1].attn, "qkv_proj")
    assert llm.layers[0].attn.k_proj.weight.dtype == torch.float32
    assert llm.layers[1].mlp.gate_up_proj.weight.dtype == torch.float32, "a whole island is joined in float32"
    if update == "rows":
        rows = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0)).half()
        with torch.no_grad():
            torch.testing.assert_close(llm(rows, torch.arange(3)[None])[0], model.llm(rows, torch.arange(3)[None])[0])


def test_only_families_and_compressors_with_such_products_are_joined() -> None:
    tiny = PVCConfig.preset("tiny")
    pooled = PVC.random(replace(tiny, compressor=replace(tiny.compressor, kind="pool")), seed=0)
    for part in (pooled.compressor, pooled.trunk):
        assert str(joined(part)) == str(part)
    sizes = {tuple(module.sizes) for part in (pooled.llm, pooled.temporal) for module in joined(part).modules()
             if hasattr(module, "sizes")}  # fmt: skip
    assert sizes == {(64, 32, 32), (128, 128), (64, 64)}
    graph_module(pooled, specs_of(pooled)["compressor"])


def test_a_channel_of_a_joined_product_belongs_to_a_part_of_the_model(tiny: LoadedModel) -> None:
    names = [part_at(tiny.model, "llm.layers.0.attn.qkv_proj", channel) for channel in (0, 63, 64, 95, 96, 127)]
    assert [name[-6:] for name in names] == ["q_proj", "q_proj", "k_proj", "k_proj", "v_proj", "v_proj"]
    assert part_at(tiny.model, "temporal.layers.1.adaln.w35", 64) == "temporal.layers.1.adaln.w5"
    assert part_at(tiny.model, "trunk.layers.0.attn.qkv", 100) == "trunk.layers.0.attn.qkv"
    for joint, parts in PARTS.items():
        assert joint not in parts


SLICES = {
    "k": ("llm", (64, 32, 32), 70, "llm.layers.0.attn.k_proj"),
    "up": ("llm", (128, 128), 200, "llm.layers.0.mlp.up_proj"),
    "w3": ("temporal", (64, 64), 5, "temporal.layers.0.adaln.w3"),
}


@pytest.mark.parametrize("name", SLICES)
def test_a_wrong_value_in_a_slice_is_a_wrong_weight_of_that_part_alone_and_its_culprit(
    name: str, bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    graph, sizes, channel, part = SLICES[name]
    bundle = copy_bundle(bundle_fp32)

    def spoil(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            # A weight matrix may be stored transposed, (inputs, outputs), or not. All of these have 64 inputs.
            if sorted(tensor.dims) == sorted((64, sum(sizes))) and "qkv" not in tensor.name:
                values = numpy_helper.to_array(tensor).copy()
                axis = list(tensor.dims).index(sum(sizes))
                np.moveaxis(values, axis, 0)[channel, 3] += 1.0
                if belongs(tiny, values, part):
                    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                    return
        raise AssertionError("no such weight")

    edit_graph(bundle, graph, spoil)
    found = compare_weights(bundle, Manifest.load(bundle), tiny)
    assert {graph: list(names) for graph, names in found.wrong_weights.items()} == {graph: [f"{part}.weight"]}
    culprit = find_culprit(bundle, tiny, graphs=(graph,))
    assert culprit is not None and culprit.layer == part and not culprit.is_precision


def belongs(loaded: LoadedModel, values: np.ndarray, part: str) -> bool:
    """Return whether `values` contains `part`, judged by the part's last row."""
    rows = loaded.model.get_parameter(f"{part}.weight").detach().numpy()
    return any(np.isin(rows[-1], line).all() for line in (*values, *values.T) if len(line) == rows.shape[1])
