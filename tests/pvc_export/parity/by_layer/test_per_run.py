"""A graph run in stretches, each open only while it runs, returns the same values as the whole graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import SpecError
from engines.memory import Array, HostMemory, host_dtype
from engines.session import OrtSession
from engines.spec import GraphSpec, Precision
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.bfloat16_on_cpu import widen_model, widen_spec
from pvc_export.parity.by_layer import per_run
from pvc_export.parity.by_layer.per_run import OpenedPerRun, stretches

from ....conftest import ExportGraph
from ..graphs import Form


def drawn(spec: GraphSpec) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        tensor.name: rng.normal(size=tensor.resolve({"batch": 2})).astype(host_dtype(tensor.dtype))
        for tensor in spec.inputs
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_in_stretches_it_is_the_same_graph(
    precision: Precision, tiny: LoadedModel, export_once: ExportGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form(name="compressor", precision=precision, streams=2)
    path, spec, graph = form.file(tiny.model, tmp_path, export_once), form.spec(tiny.model), None
    model = onnx.load(path, load_external_data=False)
    if precision == "bf16":
        widen_model(model)
        spec, graph = widen_spec(spec), model.SerializeToString()
    monkeypatch.setattr(per_run, "MOST_BYTES", 3_000_000)
    assert len(list(stretches(model))) > 2
    session = OpenedPerRun(path, spec, memory=HostMemory(), graph=graph)
    feeds = drawn(spec)
    got = session.run(feeds)
    want = OrtSession(path, spec, threads=1, graph=graph).run(feeds)
    off = 1e-5 if precision == "fp32" else 0.02
    np.testing.assert_allclose(
        np.asarray(got["frame_embeds"], np.float32), np.asarray(want["frame_embeds"], np.float32), rtol=off, atol=off
    )


def test_a_stretch_holds_no_more_weights_than_it_may_unless_one_node_needs_them(
    tiny: LoadedModel, export_once: ExportGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Form(name="compressor").file(tiny.model, tmp_path, export_once)
    model = onnx.load(path, load_external_data=False)
    sizes = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    most = max(sizes.values()) // 2
    monkeypatch.setattr(per_run, "MOST_BYTES", most)
    held = [
        [sizes[tensor.name] for tensor in onnx.load_from_string(stretch.model).graph.initializer]
        for stretch in stretches(model)
    ]
    assert all(sum(one) <= most or max(one) >= most for one in held)
    assert sum(map(len, held)) >= len(sizes) and any(sum(one) <= most for one in held)


def test_what_does_not_fit_the_spec_is_refused(tiny: LoadedModel, export_once: ExportGraph, tmp_path: Path) -> None:
    form = Form(name="compressor")
    path, spec = form.file(tiny.model, tmp_path, export_once), form.spec(tiny.model)
    feeds = drawn(spec) | {"frame_time": np.zeros((2, 1), np.float32)}
    with pytest.raises(SpecError, match="frame_time"):
        OpenedPerRun(path, spec, memory=HostMemory()).run(feeds)
