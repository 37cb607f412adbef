"""The LLM's graph cut into parts: run in sequence they equal the whole, in every form and dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.cache import LinearCache
from engines.errors import BundleError
from engines.session import OrtSession, Session
from engines.spec import CacheUpdate, Precision
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.bfloat16_on_cpu import widen_model, widen_spec
from pvc_export.parity.by_layer.cut import CutDecoder

from ....conftest import ExportGraph
from ..graphs import Form

NUM_ROWS = 5


def run(session: Session, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Run rows on an empty cache."""
    cache = LinearCache(session.spec, session.memory)
    entry = session.spec.input("inputs_embeds")
    outputs = session.run({"inputs_embeds": rows.astype(entry.dtype), **cache.feeds(NUM_ROWS)})
    return {name: np.asarray(array, np.float32) for name, array in outputs.items()}


@pytest.mark.parametrize(
    ("precision", "cache_update", "islands"),
    [("fp32", "rows", ()), ("fp16", "aliased", ("llm.layers.0",)), ("bf16", "rows", ())],
)
def test_one_after_the_other_they_are_the_whole_graph(
    precision: Precision, cache_update: CacheUpdate, islands: tuple[str, ...], tiny: LoadedModel,
    export_once: ExportGraph, tmp_path: Path,
) -> None:  # fmt: skip
    form = Form(name="llm", precision=precision, cache_update=cache_update, islands=islands)
    spec, path = form.spec(tiny.model), form.file(tiny.model, tmp_path, export_once)
    rows = np.random.default_rng(0).normal(size=(1, NUM_ROWS, tiny.config.llm.hidden_size))
    model = onnx.load(path, load_external_data=False)
    if precision == "bf16":
        widen_model(model, exact=[state.input for state in spec.states])
    whole = OrtSession(
        path, widen_spec(spec) if precision == "bf16" else spec, threads=1, graph=model.SerializeToString()
    )
    want, cut = run(whole, rows), CutDecoder(path, spec)
    assert cut.num_layers == tiny.config.llm.num_layers > 1
    for layer in range(cut.num_layers):
        piece = cut.open(layer, precision)
        got = run(piece, rows)
        for state in piece.spec.states:
            np.testing.assert_allclose(got[state.output], want.pop(state.output), rtol=0.02, atol=0.02)
        rows = got[piece.spec.outputs[0].name]
    np.testing.assert_allclose(rows, want.pop("hidden"), rtol=0.02, atol=0.02)
    assert not want


def test_a_graph_whose_nodes_do_not_say_where_they_belong_cannot_be_cut(
    tiny: LoadedModel, export_once: ExportGraph, tmp_path: Path
) -> None:
    form = Form(name="llm")
    path = form.file(tiny.model, tmp_path, export_once)
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(BundleError, match="no node is marked as belonging to layer 0"):
        CutDecoder(path, form.spec(tiny.model))


@pytest.mark.parametrize("what", ["what another layer computes", "the cache of another layer"])
def test_a_layer_that_reads_what_is_another_ones_cannot_be_cut(
    what: str, tiny: LoadedModel, export_once: ExportGraph, tmp_path: Path
) -> None:
    form, last = Form(name="llm"), tiny.config.llm.num_layers - 1
    path = form.file(tiny.model, tmp_path, export_once)
    model = onnx.load(path, load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    readers = {name: node for node in model.graph.node for name in node.input}
    if what == "the cache of another layer":
        node, wrong = readers[f"past.{last}.key"], "past.0.key"
    else:
        node = next(node for node in model.graph.node if products[-1].input[0] in node.output)
        wrong = products[0].output[0]
    node.input[:] = [wrong if index == 0 else name for index, name in enumerate(node.input)]
    onnx.save(model, path)
    with pytest.raises(BundleError, match="another layer"):
        CutDecoder(path, form.spec(tiny.model)).open(last, "fp32")
