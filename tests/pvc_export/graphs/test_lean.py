"""An export without weights in memory writes the same files as one with them, bit for bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

import pvc_ref
from engines.errors import BuildError
from engines.graph_specs import graph_specs
from engines.spec import GRAPH_NAMES, Precision, StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.graphs.hollow import SMALL, hollow
from pvc_export.graphs.lean import Matrix, export_lean, matrix_of
from pvc_export.graphs.models import load_model
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.precision import cast_model
from pvc_export.graphs.weights_file import weight_values
from pvc_export.terminal.console import Console
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

from ...conftest import few_layers

CASES: list[tuple[Precision, str, str, bool]] = [
    ("fp16", "cpu", "qwen2", False),
    ("bf16", "tensorrt-10", "internlm2", True),
]
LIMITS = StreamLimits(window=3, context=256)


def model_of(family: str) -> PVC:
    """A model with every kind of matrix: joined matmuls with and without biases, and a tied head."""
    config = few_layers(PVCConfig.preset("tiny"))
    is_qwen = family == "qwen2"
    llm = replace(config.llm, family=family, qkv_bias=is_qwen, tie_embeddings=not is_qwen)  # type: ignore[arg-type]
    return PVC.random(replace(config, llm=llm), seed=0)


@pytest.mark.parametrize(("precision", "target_name", "family", "as_table"), CASES)
def test_it_writes_the_graphs_and_the_weights_of_an_export_with_all_in_memory(
    precision: Precision, target_name: str, family: str, as_table: bool, tmp_path: Path
) -> None:
    model, target = model_of(family), load_target(target_name)
    limits = replace(LIMITS, num_times=40 if as_table else None)
    specs = graph_specs(model_shape(model.config), limits, precision, target.spelling, cache_update=target.cache_update)
    without = cast_model(hollow(model, keep_clock=as_table), precision, ("llm.layers.0.mlp",))
    whole = cast_model(model, precision, ("llm.layers.0.mlp",))
    read = Counter[str]()

    def counted(name: str) -> Tensor:
        read[name] += 1
        return model.get_parameter(name)

    for name, spec in specs.items():
        for folder in (tmp_path / "lean", tmp_path / "whole"):
            folder.mkdir(exist_ok=True)
        export_lean(graph_module(without, spec, target.spelling), spec, tmp_path / "lean" / f"{name}.onnx", counted)
        export_graph(graph_module(whole, spec, target.spelling), spec, tmp_path / "whole" / f"{name}.onnx")
        files = [(tmp_path / kind / f"{name}.onnx").read_bytes() for kind in ("lean", "whole")]
        assert files[0] == files[1]
        for constant in onnx.load(tmp_path / "lean" / f"{name}.onnx", load_external_data=False).graph.initializer:
            values = [weight_values(constant, tmp_path / kind).tobytes() for kind in ("lean", "whole")]
            assert values[0] == values[1], constant.name
    assert set(specs) == set(GRAPH_NAMES) and len(read) > 20
    twice = {"llm.embed_tokens.weight"} if model.config.llm.tie_embeddings else set()  # stored in two graphs
    assert read == Counter(read.keys()) + Counter(twice)
    large = {n for n, weight in model.named_parameters(remove_duplicate=False) if weight.numel() > SMALL}
    assert set(read) <= large


def test_an_export_from_files_is_one_from_memory(tmp_path: Path) -> None:
    """The whole path from a checkpoint folder, including the hash of its weights."""
    model = model_of("internlm2")
    pvc_ref.save(model, tmp_path / "model", dtype=torch.float16)
    (tmp_path / "model" / "tokenizer.json").write_text(byte_tokenizer().to_str(), encoding="utf-8")
    written = []
    for on_disk in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pvc_export.graphs.models.is_small", lambda _, small=not on_disk: small)
            loaded = load_model(str(tmp_path / "model"), on_disk=True)
        assert any(weight.is_meta for weight in loaded.model.parameters()) == on_disk
        folder = tmp_path / f"bundle-{on_disk}"
        folder.mkdir()
        request = ExportRequest(out=folder, target=load_target("cpu"), precision="fp16", limits=LIMITS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pvc_export.bundles.export.is_small", lambda _, small=not on_disk: small)
            manifest = write_graphs(loaded, request, folder, Console(quiet=True))
        values = [
            (constant.name, weight_values(constant, path.parent).tobytes())
            for path in sorted(folder.glob("graphs/*.onnx"))
            for constant in onnx.load(path, load_external_data=False).graph.initializer
        ]
        written.append((manifest.model, manifest.graphs, values))
    assert written[0] == written[1]


def test_a_constant_is_a_weight_as_it_is_or_transposed_and_nothing_else_of_one() -> None:
    spec = graph_specs(model_shape(PVCConfig.preset("tiny")), LIMITS, "fp32")["embed"]
    matrix, other = Matrix(("llm.a",), torch.empty(8, 6)), Matrix(("llm.b",), torch.empty(6, 6))
    found = partial(matrix_of, matrices=(other, matrix), spec=spec)
    assert found(constant(matrix.empty)) == (matrix, False)
    assert found(constant(matrix.empty.T)) == (matrix, True)
    assert found(constant(torch.ones(8, 6))) is None
    for part in (matrix.empty[:3], matrix.empty[2:], matrix.empty[:, 0], matrix.empty.view(6, 8), other.empty[1:].T):
        with pytest.raises(BuildError, match=r"is a view \(.*\) of llm\.[ab]"):
            found(constant(part))


def constant(tensor: Tensor) -> ir.Value:
    return ir.Value(name="c", const_value=TorchTensor(tensor))
