"""The clock as a table: the MLP's values bit for bit, fewer weights, and a stream that ends where the table does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engines import PVCStream, open_bundle
from engines.bundle import graph_path
from engines.errors import ModelError, StreamError
from engines.manifest import Manifest
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, export
from pvc_export.controls.graph_edits import edit_graph
from pvc_export.graphs.clock_table import num_frame_times, table_of, with_table
from pvc_export.graphs.models import LoadedModel, load_model, loaded_model
from pvc_export.graphs.precision import cast_model
from pvc_export.parity.culprit.find import find_culprit
from pvc_export.parity.report import ParityReport
from pvc_export.parity.weights import compare_weights
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer
from pvc_ref.temporal import TimeEmbedding

from ...conftest import SharedBundle
from ..conftest import Run

Frames = list[np.ndarray]
TRAINED, WINDOW, NUM_TIMES = 12, 4, 40


@pytest.fixture(scope="module")
def short(tiny: LoadedModel) -> LoadedModel:
    """`tiny`, trained on twelve frames."""
    model = PVC.random(replace(tiny.config, trained_frames=TRAINED), seed=0)
    return loaded_model(model, byte_tokenizer(), name="short")


@pytest.fixture(scope="module")
def bundle_table(short: LoadedModel, shared_bundle: SharedBundle) -> Path:
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    request = ExportRequest(out=Path(), target=load_target("cpu"), precision="fp32", limits=limits, clock="reanchor")
    return shared_bundle("table", short, request)


@pytest.mark.parametrize("name", ["tiny", "shapes"])
@torch.no_grad()
def test_a_row_is_what_the_mlp_makes_of_that_time_bit_for_bit(name: str) -> None:
    """This also holds in a float16 model, since clocks stay in float32."""
    narrow = cast_model(load_model(name).model, "fp16")
    clocks = [module for module in narrow.modules() if isinstance(module, TimeEmbedding)]
    assert len(clocks) == narrow.config.vision.num_temporal_layers + 1
    for clock in clocks:
        table = table_of(clock, 96)
        assert table.dtype == torch.float32
        for time in range(96):
            assert torch.equal(table[time], clock(torch.tensor([float(time)]))[0]), time


@torch.no_grad()
def test_with_tables_the_model_computes_the_same_bits_and_shares_all_else(tiny: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    x, past = torch.randn(1, 1, 65, 64, generator=generator), None
    encoder, bias = tiny.model.temporal, torch.zeros(1, 1, 1)
    timed = with_table(encoder, 8)
    for time in range(8):
        times = torch.tensor([[float(time)]])
        (want, _), (got, _) = encoder(x, times, past, bias), timed(x, times, past, bias)
        assert torch.equal(got, want)
    assert timed.layers[0].attn.qkv.weight is encoder.layers[0].attn.qkv.weight
    assert with_table(encoder, None) is encoder and isinstance(encoder.layers[0].time_embedding, TimeEmbedding)


def test_a_table_is_as_long_as_training_an_image_and_ten_windows() -> None:
    tiny = PVCConfig.preset("tiny")
    assert num_frame_times(tiny, window=8) == 96 and num_frame_times(tiny, window=60) == 600
    in_time = replace(tiny, image_layout="tiles_in_time", trained_frames=16)
    assert num_frame_times(in_time, window=2) == 7 * in_time.num_image_repeats
    assert num_frame_times(replace(in_time, use_thumbnail=False), window=2) == 6 * in_time.num_image_repeats


def test_the_bundle_passes_the_whole_check_and_holds_a_table_in_place_of_two_matrices(
    bundle_table: Path, bundle_fp32: Path, report_of: Callable[[Path], ParityReport], short: LoadedModel
) -> None:
    report, manifest = report_of(bundle_table), Manifest.load(bundle_table)
    assert report.passed and manifest.limits.num_times == NUM_TIMES and "wrong" not in str(report.not_executed)
    for name in ("temporal", "compressor"):
        files = [Path(folder / graph_path(name)).with_suffix(".onnx.data") for folder in (bundle_table, bundle_fp32)]
        assert files[0].stat().st_size < files[1].stat().st_size
        graph = onnx.load(bundle_table / graph_path(name), load_external_data=False).graph
        assert {"Cos", "Sin"}.isdisjoint(node.op_type for node in graph.node), "the MLP's sinusoid is still there"
    found = compare_weights(bundle_table, manifest, short)
    assert found.wrong_weights == {} and found.num_weights > 0


def test_a_frame_comes_out_as_of_the_computed_clock(bundle_table: Path, bundle_fp32: Path, frames: Frames) -> None:
    """`short` and `tiny` have the same weights, but the two graphs round a time's embedding differently."""
    tables, computed = (PVCStream(open_bundle(folder), clock="run-on") for folder in (bundle_table, bundle_fp32))
    for frame in frames[:TRAINED]:
        a, b = tables.vision.encode(frame_of(frame)), computed.vision.encode(frame_of(frame))
        np.testing.assert_allclose(a.frame_embeds, b.frame_embeds, atol=2e-5 * float(np.abs(b.frame_embeds).max()))
        tables.push(frame)
        computed.push(frame)


def frame_of(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.resize(frame, (112, 112, 3)))


def test_its_streams_re_anchor_unless_told_otherwise_and_continue_for_ever(bundle_table: Path, frames: Frames) -> None:
    stream = PVCStream(open_bundle(bundle_table))
    assert stream.clock == "reanchor"
    for index in range(3 * TRAINED):
        stream.push(frames[index % len(frames)])
    assert stream.num_frames == 3 * TRAINED and stream.num_anchors > 1


def test_a_stream_whose_clock_runs_on_ends_where_the_table_does(bundle_table: Path, frames: Frames) -> None:
    stream = PVCStream(open_bundle(bundle_table), clock="run-on")
    for frame in frames[:2]:
        stream.push(frame)
    stream.vision.ring.num_frames = NUM_TIMES - 1  # the context would be full earlier
    stream.push(frames[2])
    before = stream.context_rows
    with pytest.raises(StreamError, match="this frame's time is 40, but the bundle has only 40 frame times") as info:
        stream.push(frames[0])
    assert "--clock run-on" in info.value.fix
    assert (stream.num_frames, stream.context_rows) == (NUM_TIMES, before)
    assert stream.ask("What moves?", max_new_tokens=2).token_ids


def test_an_image_that_takes_more_times_than_there_are_is_refused(bundle_table: Path) -> None:
    bundle = open_bundle(bundle_table)
    images = replace(bundle.manifest.images, layout="tiles_in_time")
    stream = PVCStream(replace(bundle, manifest=replace(bundle.manifest, images=images)))
    with pytest.raises(StreamError, match="the bundle has only 40 frame times"):
        stream.encode_image(np.zeros((112, 1344, 3), np.uint8), max_tiles=12)


@pytest.mark.parametrize("graph", ["temporal", "compressor"])
def test_a_wrong_row_is_a_wrong_weight_and_its_clock_the_culprit(
    graph: str, bundle_table: Path, short: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_table)

    def spoil(model: onnx.ModelProto) -> None:
        table = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("time_embedding.table"))
        values = numpy_helper.to_array(table).copy()
        values[WINDOW] += 1.0  # at a frame that the culprit search looks at
        table.CopyFrom(numpy_helper.from_array(values, table.name))

    edit_graph(bundle, graph, spoil)
    (wrong,) = compare_weights(bundle, Manifest.load(bundle), short).wrong_weights[graph]
    assert wrong.startswith(graph) and wrong.endswith("time_embedding.table")
    culprit = find_culprit(bundle, short, graphs=(graph,))
    assert culprit is not None and f"{culprit.layer}.table" == wrong and not culprit.is_precision


def test_a_model_without_absolute_time_has_no_table(tiny: LoadedModel, tmp_path: Path) -> None:
    fixed = loaded_model(PVC.random(replace(tiny.config, time_mode="fixed"), seed=0), byte_tokenizer(), name="fixed")
    request = ExportRequest(out=tmp_path / "b", target=load_target("cpu"), precision="fp32", clock="reanchor")
    with pytest.raises(ModelError, match="--clock reanchor, but this model's time mode is 'fixed'"):
        export(fixed, request)


def test_a_manifest_from_before_computes_any_time(bundle_fp32: Path, copy_bundle: Callable[[Path], Path]) -> None:
    bundle = copy_bundle(bundle_fp32)
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    del data["limits"]["num_times"]
    for spec in data["graphs"].values():
        del spec["num_times"]
    (bundle / "manifest.json").write_text(json.dumps(data), "utf-8")
    assert Manifest.load(bundle).limits.num_times is None and open_bundle(bundle).manifest.graphs


def test_the_command_line_offers_both_clocks(pvc_export: Run) -> None:
    pvc_export("onnx", "--clock", "rewind").says(2, "--clock is 'rewind'", "run-on")
