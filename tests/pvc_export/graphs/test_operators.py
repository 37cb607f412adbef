"""The operator table: our graphs use only operators of their target's parser; any other graph is refused by node."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

import pvc_export.bundles.export
from engines.errors import BuildError
from engines.graph_specs import graph_specs
from engines.manifest import Manifest
from engines.parser import load_parser
from engines.spec import CacheUpdate, GraphSpec, Precision, Quantization, StreamLimits
from engines.target import load_target, target_names
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.commands.export import chosen_target
from pvc_export.graphs.hollow import hollow
from pvc_export.graphs.lean import export_lean
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.graphs.operators import check_operators, first_lack, read_uses
from pvc_export.graphs.precision import cast_model
from pvc_export.graphs.quantize import Quantizer, prepared
from pvc_export.terminal.console import Console

from ...conftest import Shared

WITH_PARSER = [name for name in target_names() if load_target(name).parser]
OLD = ("jetson-orin-jp62", "tensorrt-10", "jetson-thor-jp70")
HAVE_IN_PLACE = ("jetson-orin-jp72", "jetson-thor-jp72", "rtx", "tensorrt")
FORMS = {
    "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int4 weights": "int4", "int8 products": "int8",
    "int8 states": "int8",
}  # fmt: skip
"""Precisions and quantised forms, each with a dtype that appears in its files."""
UPDATES: tuple[CacheUpdate, ...] = ("rows", "aliased")
INT4 = Quantization(block=32, zero_points=False, method="round")
SERVED = "embed"
"""A look-up on the host, which no TensorRT parser reads."""


def write_further_graphs(small: LoadedModel, folder: Path) -> None:
    """Write the graphs that no shared bundle has, as FORM/UPDATE/GRAPH.onnx; without a cache only under `rows`."""
    limits, shape = StreamLimits(window=4, context=512), model_shape(small.config)

    def specs(precision: Precision, update: CacheUpdate) -> dict[str, GraphSpec]:
        return graph_specs(shape, limits, precision, "concat", cache_update=update)

    def write(precision: Precision, update: CacheUpdate, *names: str) -> None:
        model = cast_model(small.model, precision)
        for name in names:
            path = folder / precision / update / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            spec = specs(precision, update)[name]
            export_graph(graph_module(model, spec), spec, path)

    write("bf16", "rows", "trunk", "temporal", "compressor", "head", "llm")
    write("bf16", "aliased", "llm")
    write("fp32", "aliased", "llm")
    write("fp16", "rows", "llm")
    model = cast_model(prepared(hollow(small.model, keep_clock=False), {"llm": INT4}, None, ()), "fp16")
    quantizer = Quantizer.of(small.model, {"llm": INT4}, "fp16", ())
    for update in UPDATES:
        path = folder / "int4 weights" / update / "llm.onnx"
        path.parent.mkdir(parents=True)
        spec = replace(specs("fp16", update)["llm"], quantization=INT4)
        export_lean(graph_module(model, spec), spec, path, quantizer.stored, quantizer=quantizer)


Graphs = Callable[[str, CacheUpdate], list[Path]]


@pytest.fixture(scope="module")
def graphs_of(request: pytest.FixtureRequest, shared: Shared, small: LoadedModel) -> Graphs:
    """The graphs of a form that become engines, for targets with the given update of the LLM's cache."""
    bundles = {
        ("fp16", "aliased"): "bundle_fp16",
        ("fp32", "rows"): "bundle_rows",
        ("int8 products", "aliased"): "bundle_static",
        ("int8 states", "rows"): "bundle_states",
        ("int8 states", "aliased"): "bundle_states",  # TensorRT does not write codes in place
    }

    def make(folder: Path) -> None:
        write_further_graphs(small, folder.with_suffix(".partial"))
        folder.with_suffix(".partial").rename(folder)

    further = shared("operators", make)

    def graphs(form: str, update: CacheUpdate) -> list[Path]:
        found: dict[str, Path] = {}
        for other in UPDATES:  # a graph without a cache is the same for both
            bundle = bundles.get((form, other))
            folder: Path = request.getfixturevalue(bundle) / "graphs" if bundle else further / form / other
            for path in folder.glob("*.onnx"):
                if path.stem not in ("llm", SERVED) or (path.stem == "llm" and other == update):
                    found[path.stem] = path
        paths = sorted(found.values())
        assert any(FORMS[form] in use.dtypes for path in paths for use in read_uses(path)[1])
        return paths

    return graphs


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("name", WITH_PARSER)
def test_every_graph_that_we_export_for_a_target_is_in_the_list_of_its_parser(
    graphs_of: Graphs, name: str, form: str
) -> None:
    target = load_target(name)
    paths = graphs_of(form, target.cache_update)
    if form == "int4 weights" and not target.int4_blocks:
        with pytest.raises(BuildError, match=r"DequantizeLinear.* in int4, only in"):
            check_operators(paths[0], target)
        return
    for path in paths:
        assert first_lack(load_parser(target.parser or ""), *read_uses(path)) is None
        check_operators(path, target)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("update", UPDATES)
def test_the_list_that_stands_in_for_tensorrt_rtx_agrees_with_its_parser_on_all_that_we_export(
    graphs_of: Graphs, form: str, update: CacheUpdate
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")
    rtx = load_target("rtx")
    for path in graphs_of(form, update):
        check_operators(path, rtx)  # uses the real parser
        assert first_lack(load_parser(rtx.parser or ""), *read_uses(path)) is None


@pytest.mark.parametrize("name", OLD)
def test_a_graph_that_writes_its_cache_in_place_is_refused_by_node_where_the_parser_has_no_such_operator(
    bundle_fp16: Path, name: str
) -> None:
    path = bundle_fp16 / "graphs/llm.onnx"
    nodes = onnx.load(path, load_external_data=False).graph.node
    scatter = next(node.name for node in nodes if node.op_type == "TensorScatter")
    with pytest.raises(BuildError) as error:
        check_operators(path, load_target(name))
    assert f"opset 24: node '{scatter}' (TensorScatter): the ONNX parser of TensorRT 10." in error.value.what
    assert f"'{name}'" in error.value.expected
    named = error.value.fix.partition("--target ")[2].split(" or ")
    assert tuple(named) == HAVE_IN_PLACE


def plant(source: Path, folder: Path, change: Callable[[NodeProto], list[NodeProto]]) -> Path:
    """Copy a graph and replace its first Sigmoid by the nodes that `change` returns."""
    model = onnx.load(source, load_external_data=False)
    index = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Sigmoid")
    changed = change(model.graph.node[index])
    del model.graph.node[index]
    for offset, node in enumerate(changed):
        model.graph.node.insert(index + offset, node)
    for data in source.parent.glob(f"{source.name}.data"):
        shutil.copy(data, folder)
    onnx.save(model, folder / source.name)
    return folder / source.name


def of(operator: str) -> Callable[[NodeProto], list[NodeProto]]:
    return lambda node: [helper.make_node(operator, node.input, node.output, name="planted")]


def between_casts_to(dtype: int, operator: str) -> Callable[[NodeProto], list[NodeProto]]:
    def nodes(node: NodeProto) -> list[NodeProto]:
        return [
            helper.make_node("Cast", node.input, ["to"], name="there", to=dtype),
            helper.make_node(operator, ["to"], ["done"], name="planted"),
            helper.make_node("Cast", ["done"], node.output, name="back", to=TensorProto.FLOAT),
        ]

    return nodes


@pytest.mark.parametrize("operator", ["Hyper", "BitwiseNot"], ids=["unknown", "unsupported"])
@pytest.mark.parametrize("name", ["jetson-orin-jp62", "tensorrt", "rtx"])
def test_an_operator_that_no_parser_has_is_refused_by_node(
    bundle_rows: Path, tmp_path: Path, name: str, operator: str
) -> None:
    path = plant(bundle_rows / "graphs/llm.onnx", tmp_path, of(operator))
    with pytest.raises(BuildError, match=rf"node 'planted' \({operator}\): ") as error:
        check_operators(path, load_target(name))
    assert "no target with engines has it" in error.value.fix


def test_without_its_package_the_list_decides_for_tensorrt_rtx(
    bundle_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    check_operators(bundle_rows / "graphs/llm.onnx", load_target("rtx"))
    path = plant(bundle_rows / "graphs/llm.onnx", tmp_path, of("BitwiseNot"))
    with pytest.raises(BuildError, match=r"node 'planted' \(BitwiseNot\): the ONNX parser of TensorRT 11.0 does not"):
        check_operators(path, load_target("rtx"))


@pytest.mark.parametrize(
    ("dtype", "operator", "says"),
    [
        (TensorProto.DOUBLE, "Sigmoid", r"node 'there' \(Cast\): .* in float64, only in "),
        (TensorProto.UINT64, "Identity", r"node 'there' \(Cast\): .* in uint64, only in "),
        (TensorProto.INT32, "Sigmoid", r"node 'planted' \(Sigmoid\): .* in int32, only in bfloat16, float16, float32$"),
    ],
    ids=["float64", "uint64", "int32"],
)
def test_an_operator_in_a_dtype_that_the_list_does_not_have_for_it_is_refused_with_the_dtype(
    bundle_rows: Path, tmp_path: Path, dtype: int, operator: str, says: str
) -> None:
    path = plant(bundle_rows / "graphs/llm.onnx", tmp_path, between_casts_to(dtype, operator))
    with pytest.raises(BuildError) as error:
        check_operators(path, load_target("jetson-orin-jp62"))
    assert error.match(f"(?m){says}")


def small_file(path: Path, nodes: list[NodeProto], opset: int, dtype: int = TensorProto.FLOAT) -> Path:
    values = [helper.make_tensor_value_info(name, dtype, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


@pytest.mark.parametrize(("opset", "fits"), [(20, True), (21, False), (8, False)], ids=str)
def test_a_file_of_an_opset_that_the_parser_does_not_read_is_refused_though_it_has_the_operators(
    tmp_path: Path, opset: int, fits: bool
) -> None:
    path = small_file(tmp_path / "graph.onnx", [helper.make_node("Tanh", ["x"], ["y"])], opset)
    if fits:
        check_operators(path, load_target("jetson-orin-jp62"))
        return
    with pytest.raises(BuildError, match=f"opset {opset}: the ONNX parser of TensorRT 10.3 reads opset 9 to 20") as it:
        check_operators(path, load_target("jetson-orin-jp62"))
    assert ("jetson-thor-jp70" in it.value.fix) == (opset == 21)


def test_a_node_without_a_name_is_called_by_what_it_makes(tmp_path: Path) -> None:
    path = small_file(tmp_path / "graph.onnx", [helper.make_node("Hyper", ["x"], ["y"])], 20)
    with pytest.raises(BuildError, match=r"node 'y' \(Hyper\)"):
        check_operators(path, load_target("jetson-orin-jp62"))


def test_an_operator_of_another_domain_is_not_taken_for_onnx_s_own_of_that_name(tmp_path: Path) -> None:
    node = helper.make_node("Tanh", ["x"], ["y"], name="planted", domain="com.microsoft")
    path = small_file(tmp_path / "graph.onnx", [node], 20)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(BuildError, match=r"node 'planted' \(com\.microsoft:Tanh\)"):
        check_operators(path, load_target("tensorrt"))


def test_a_node_inside_a_branch_is_looked_at_too(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch"])
    branches = [
        helper.make_graph([helper.make_node(operator, ["x"], ["z"], name=operator)], operator, [], [value])
        for operator in ("Tanh", "Hyper")
    ]
    nodes = [
        helper.make_node("Constant", [], ["which"], value=helper.make_tensor("", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    path = small_file(tmp_path / "graph.onnx", nodes, 20)
    with pytest.raises(BuildError, match=r"node 'Hyper' \(Hyper\)"):
        check_operators(path, load_target("tensorrt"))


def test_nothing_is_asked_of_a_graph_for_a_target_that_runs_onnx_files(tmp_path: Path) -> None:
    path = small_file(tmp_path / "graph.onnx", [helper.make_node("Hyper", ["x"], ["y"])], 99)
    for name in target_names():
        if name not in WITH_PARSER:
            check_operators(path, load_target(name))


@pytest.mark.parametrize("engines", [True, False], ids=["trt", "onnx"])
def test_an_export_looks_at_all_graphs_before_it_builds_the_first_engine(
    bundle_fp16: Path, small: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: bool
) -> None:
    """The faulty graph is the fifth of six."""
    manifest, built = Manifest.load(bundle_fp16), []
    export = pvc_export.bundles.export
    monkeypatch.setattr(
        export, "export_graph", lambda _, spec, path: shutil.copy(bundle_fp16 / "graphs" / path.name, path)
    )
    monkeypatch.setattr(export, "build_engines", lambda *_: built.append("engines") or {})
    target = replace(
        chosen_target("jetson-orin-jp62", "fp16", made="trt" if engines else "onnx"), cache_update="aliased"
    )
    request = ExportRequest(out=tmp_path, target=target, precision="fp16", limits=manifest.limits)
    with pytest.raises(BuildError, match=r"llm\.onnx, opset 24: node .* \(TensorScatter\)"):
        write_graphs(small, request, tmp_path, Console(quiet=True))
    assert not built
