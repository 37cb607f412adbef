"""A bundle with int8 caches, compared with a reference that has them too; every kind of wrong cache is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.cache import RingCache
from engines.errors import BundleError
from engines.manifest import Manifest
from engines.memory import Tensor
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.controls.graph_edits import edit_graph
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.quantize import as_held
from pvc_export.parity.check import check_bundle
from pvc_export.parity.culprit.find import find_culprit
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.report import ParityReport
from pvc_export.parity.structure import compare_graphs
from pvc_export.parity.value_states import ValueSession, decoded, encoded, of_values, with_values
from pvc_export.report.given import ReportInput
from pvc_export.terminal.console import Console

BOTH = ("ring", "cache")


def test_it_passes_its_check_with_engines_whose_attention_stays_fused(
    bundle_states: Path, report_of: Callable[[Path], ParityReport], tiny: LoadedModel
) -> None:
    manifest, report = Manifest.load(bundle_states), report_of(bundle_states)
    assert manifest.rounding == "int8" and manifest.has_codes and not manifest.quantization
    assert report.passed and f"{len(list(tiny.model.parameters()))} weights bit-equal" in report.summary()
    rules = {rule.name: rule for rule in report.rules}
    assert rules["operations"].passed and rules["what codes cost"].passed
    assert rules["a stream that is saved and opened goes on"].passed
    assert rules["a fork is its parent, and leaves it alone"].passed
    assert manifest.engines["temporal"].fused_attention == {"gemm": 2, "gemv": 2}
    assert manifest.engines["llm"].fused_attention == {"gemm": 2, "gemv": 0}
    command, _ = ReportInput(
        parity=replace(report, looked=True, stopped="as if"), manifest=manifest, bundle="OUT"
    ).next_command()
    assert "--int8 ring --int8 cache -o" in command


@pytest.fixture(scope="module")
def on_cpu(small: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CPU bundle with two streams, int8 caches, and the cache updated in place."""
    folder = tmp_path_factory.mktemp("states") / "bundle"
    folder.mkdir()
    request = ExportRequest(
        out=folder, target=load_target("cpu"), precision="fp32", int8_states=BOTH,
        limits=StreamLimits(window=3, context=256, streams=2),
    )  # fmt: skip
    write_graphs(small, request, folder, Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def fresh(small: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> FreshGraphs:
    return FreshGraphs(small.model, tmp_path_factory.mktemp("fresh"))


@pytest.mark.parametrize("by_layer", [False, True], ids=["whole", "by layer"])
def test_on_a_cpu_it_passes_whole_and_layer_by_layer(by_layer: bool, on_cpu: Path, small: LoadedModel) -> None:
    report = check_bundle(on_cpu, small, by_layer=by_layer, num_questions=0)
    assert report.passed, report.failure_text()
    assert not report.missing, "codes and scales must be compared, as values"


def _constant(model: onnx.ModelProto, like: float, value: float) -> None:
    tensor = next(t for t in model.graph.initializer if numpy_helper.to_array(t).size == 1 and
                  numpy_helper.to_array(t).dtype == np.float32 and float(numpy_helper.to_array(t)) == like)  # fmt: skip
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), value), tensor.name))


def another_largest_code(model: onnx.ModelProto) -> None:
    """Results are correct but too coarse."""
    _constant(model, 127, 100)


def codes_that_are_cut_off(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Round":
            node.op_type = "Floor"


def scales_of_the_other(model: onnx.ModelProto) -> None:
    """Exchange the scales of keys and values."""
    names = {"past.0.key.scale": "past.0.value.scale", "past.0.value.scale": "past.0.key.scale"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def a_row_that_itself_is_seen_unrounded(model: onnx.ModelProto) -> None:
    """The returned rows are correct, but the current frame sees its own key unrounded, unlike later frames."""
    first = next(node for node in model.graph.node if node.op_type == "Round")
    (scaled,) = (node for node in model.graph.node if node.output[0] == first.input[0])
    values = next(node for node in model.graph.node if node.op_type == "Mul" and scaled.input[1] in node.input)
    (reader,) = (node for node in model.graph.node if values.output[0] in node.input)
    reader.input[:] = [scaled.input[0] if name == values.output[0] else name for name in reader.input]


EDITS = [another_largest_code, codes_that_are_cut_off, scales_of_the_other, a_row_that_itself_is_seen_unrounded]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_graph_that_remembers_otherwise_is_built_otherwise_and_its_operation_is_found(
    edit: Callable[[onnx.ModelProto], None], on_cpu: Path, small: LoadedModel, fresh: FreshGraphs,
    copy_bundle: Callable[[Path], Path],
) -> None:  # fmt: skip
    bundle = copy_bundle(on_cpu)
    manifest = Manifest.load(bundle)
    held = as_held(small, manifest)
    assert find_culprit(bundle, held, graphs=("temporal",)) is None
    edit_graph(bundle, "temporal", edit)
    found = compare_graphs(bundle, manifest, held, fresh)
    assert [rule.graph for rule in found.rules if rule.passed is False] == ["temporal"]
    culprit = find_culprit(bundle, held, graphs=("temporal",))
    assert culprit is not None and culprit.layer.startswith("temporal.layers.0.temporal_attn")


def test_a_runtime_that_loses_scales_is_told(on_cpu: Path, small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    push = RingCache.push

    def lossy(self: RingCache, rows: Mapping[str, Tensor]) -> None:
        push(self, {name: np.zeros_like(row) if name == "new.0.value.scale" else row for name, row in rows.items()})

    monkeypatch.setattr(RingCache, "push", lossy)
    report = check_bundle(on_cpu, small, ladder=False, num_questions=0)
    assert not report.passed
    assert report.first_failed_graph == "temporal"


def test_a_bundle_that_says_it_remembers_otherwise_is_not_what_its_graphs_are(
    on_cpu: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(on_cpu)
    for states in ((), ("ring",), ("ring", "rings")):
        replace(Manifest.load(on_cpu), int8_states=states).save(bundle)
        with pytest.raises(BundleError, match="the graphs do not match its shape|int8_states has 'rings'"):
            Manifest.load(bundle)


def test_values_are_what_codes_and_scales_stand_for_both_ways(on_cpu: Path) -> None:
    spec = Manifest.load(on_cpu).graphs["llm"]
    plain = of_values(spec)
    assert [state.dtype for state in plain.states] == ["float32"] * 2 and of_values(plain) is plain
    assert plain.aliases == {state.output: state.input for state in plain.states}
    rng = np.random.default_rng(0)
    feeds = {
        tensor.name: rng.normal(0, 3, tensor.resolve({"batch": 1, "rows": 2, "past": 64})).astype(np.float32)
        for tensor in plain.inputs
        if tensor.dtype == "float32"
    }
    fed = encoded(spec, feeds)
    for tensor in spec.inputs:
        if tensor.name in fed:
            tensor.check(fed[tensor.name], "llm")
    back = decoded(fed)
    assert back.keys() == feeds.keys()
    for state in plain.states:
        scale = fed[f"{state.input}.scale"]
        assert (np.abs(back[state.input] - feeds[state.input]) <= 0.5001 * scale).all()


def test_a_session_of_values_writes_in_place_what_its_graph_wrote(on_cpu: Path) -> None:
    from engines import open_bundle

    bundle = open_bundle(on_cpu, runtime="cpu", unchecked=True)
    session = with_values(bundle).sessions["llm"]
    assert isinstance(session, ValueSession) and with_values(bundle).sessions["trunk"] is bundle.sessions["trunk"]
    spec = session.spec
    feeds = {
        tensor.name: np.zeros(tensor.resolve({"batch": 1, "rows": 1, "past": 64}), tensor.dtype)
        for tensor in spec.inputs
    } | {"inputs_embeds": np.ones((1, 1, 64), np.float32)}
    outputs = session.run(feeds)
    for output, name in spec.aliases.items():
        assert outputs[output] is feeds[name] and feeds[name].any()
