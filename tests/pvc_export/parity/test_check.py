"""The parity check passes a faithful bundle and names the faulty part of any other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import engines.stream
from engines.cache import LinearCache, RingCache
from engines.errors import ModelError, SpecError
from engines.manifest import Manifest
from pvc_export.controls.graph_edits import (
    edit_graph,
    first_stream_for_all,
    perturb_one_weight,
    roll_slot_mask,
    round_the_clock,
    stop_the_clock,
    swap_keys_and_values,
)
from pvc_export.controls.runtime_patches import (
    last_row_written_over,
    least_likely_token,
    mask_one_slot_off,
    positions_one_ahead,
)
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_export.parity.check import check_bundle
from pvc_export.parity.clock import clock_times
from pvc_export.parity.edge_cases import edge_lengths
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.ladder import VISION_GRAPHS
from pvc_export.parity.limits import FLOOR, GATED, NoiseTable, beyond_limits, factors_of, worst_rows
from pvc_export.parity.metrics import Difference, compare_arrays
from pvc_export.parity.places import Place, Rung
from pvc_export.parity.recorded_stream import MIN_DECODED, RecordedStream, stream_clip
from pvc_export.parity.report import ParityReport

from ..conftest import Run

Copy = Callable[[Path], Path]
BUNDLES = ("bundle_fp32", "bundle_fp16")


pytestmark = pytest.mark.usefixtures("stream_alone")


def check(bundle: Path, reference: LoadedModel) -> ParityReport:
    """Check the bundle alone. Other files test the rungs in between."""
    return check_bundle(bundle, reference, ladder=False)


@pytest.mark.parametrize("bundle_name", [*BUNDLES, "bundle_rows"])
def test_a_faithful_bundle_passes_with_every_output_and_every_row_compared(
    bundle_name: str, report_of: Callable[[Path], ParityReport], request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    report = report_of(bundle)
    manifest = Manifest.load(bundle)
    assert report.passed, report.failure_text()
    rows = [row for row in report.rows if row.rung == Rung("bundle", manifest.precision)]
    assert {(row.graph, row.tensor) for row in rows} == {
        (spec.name, tensor.name) for spec in manifest.graphs.values() for tensor in spec.outputs
    }
    frames = 2 * manifest.limits.window + 2 + 2  # the ring wraps twice, then the clock jumps twice
    frames += 2 if manifest.limits.streams == 2 else 0  # one per row of a batch of two
    times, edges = clock_times(manifest), edge_lengths(manifest.limits, manifest.limits.context)
    for row in rows:
        assert row.graph not in VISION_GRAPHS or num_compared(report, row.worst, "frame", "stream") == frames
        assert row.graph not in ("temporal", "compressor") or num_compared(report, row.worst, "time") == len(times)
        assert row.graph != "llm" or row.num_compared > frames + len(edges)
    assert report.num_equal_tokens == report.num_tokens == 16


def num_compared(report: ParityReport, like: Difference, *kinds: str) -> int:
    """Count the places of these kinds where the tensor was compared on that rung."""
    found = (one for one in report.differences if (one.rung, one.name) == (like.rung, like.name))
    return sum(one.where.kind in kinds for one in found)


@pytest.mark.parametrize("graph", ["trunk", "temporal", "compressor", "embed", "llm", "head"])
@pytest.mark.parametrize("bundle_name", BUNDLES)
def test_one_perturbed_weight_fails_and_its_graph_is_named(
    bundle_name: str, graph: str, tiny: LoadedModel, copy_bundle: Copy, request: pytest.FixtureRequest
) -> None:
    bundle = copy_bundle(request.getfixturevalue(bundle_name))
    if graph == "embed":  # one byte of one token that the prompt uses
        edit_graph(bundle, graph, lambda model: _perturb_row(model, tiny.token_id("<|im_start|>")))
    else:
        edit_graph(bundle, graph, perturb_one_weight)
    report = check(bundle, tiny)
    assert not report.passed
    assert report.first_failed_graph == graph and f"First failing graph: '{graph}'" in report.failure_text()
    assert list(report.wrong_weights) == [graph] and len(report.wrong_weights[graph]) == 1


def _perturb_row(model: object, row: int) -> None:
    from onnx import numpy_helper

    tensor = model.graph.initializer[0]  # type: ignore[attr-defined]
    values = numpy_helper.to_array(tensor).copy()
    values[row, 0] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("bundle_name", BUNDLES)
def test_a_slot_mask_off_by_one_in_the_graph_fails(
    bundle_name: str, tiny: LoadedModel, copy_bundle: Copy, request: pytest.FixtureRequest
) -> None:
    bundle = copy_bundle(request.getfixturevalue(bundle_name))
    edit_graph(bundle, "temporal", roll_slot_mask)
    assert not check(bundle, tiny).passed


def test_swapped_keys_and_values_end_the_command_with_exit_code_3(
    bundle_fp16: Path, copy_bundle: Copy, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    bundle = copy_bundle(bundle_fp16)
    edit_graph(bundle, "temporal", swap_keys_and_values)
    monkeypatch.setattr("pvc_export.parity.check.climb", lambda *_, **__: Evidence())
    pvc_export("check", bundle).says(3, "First failing graph: 'temporal'")


FAULTS = (mask_one_slot_off, positions_one_ahead, least_likely_token)
"""One fault each of vision, language and decoding; controls/test_prove.py has the others."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_of_the_runtime_fails(
    fault: Callable[[], AbstractContextManager[None]], bundle_fp16: Path, tiny: LoadedModel
) -> None:
    with fault():
        report = check(bundle_fp16, tiny)
    assert not report.passed and "the bundle differs from the reference" in report.failure_text()


def test_an_unmasked_tail_of_a_bucket_fails(bundle_rows: Path, tiny: LoadedModel) -> None:
    with last_row_written_over():
        report = check(bundle_rows, tiny)
    assert not report.passed and report.first_failed_graph == "llm"


@pytest.mark.parametrize("length", [255, 257])
def test_a_fault_at_the_edge_of_a_bucket_is_found_though_no_stream_stops_there(
    bundle_rows: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """The newest row is hidden at exactly one length."""
    feeds = LinearCache.feeds

    def wrong(self: LinearCache, num_rows: int) -> dict[str, np.ndarray]:
        fed = feeds(self, num_rows)
        if self.length == length:
            fed["attention_mask"][:, length - 1] = 0
        return fed  # type: ignore[return-value]

    monkeypatch.setattr(LinearCache, "feeds", wrong)
    report = check(bundle_rows, tiny)
    places = [str(one.where) for one in beyond_limits(report.differences)]
    assert not report.passed and f"position {length}" in places
    assert {place.split(",")[0] for place in places} > {
        f"1 rows after {length}",
        f"{tiny.config.compressor.num_tokens} rows after {length}",
    }


def test_an_answer_without_a_word_still_shows_decoding(
    bundle_fp32: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained model may stop immediately; here every token counts as a stop token."""
    ask = engines.stream.PVCStream.ask

    def stop_at_once(self: engines.stream.PVCStream, *args: object, **options: object) -> object:
        self._tokenizer.stop_ids = AnyToken()  # type: ignore[assignment]
        return ask(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engines.stream.PVCStream, "ask", stop_at_once)
    report = check(bundle_fp32, tiny)
    assert report.passed, report.failure_text()
    heads = [found for found in report.differences if found.graph == "head" and found.rung.kind == "bundle"]
    decoded = [found for found in heads if found.where.kind == "token"]
    assert report.num_tokens == 0 and len(decoded) == 1 + MIN_DECODED


class AnyToken:
    def __contains__(self, token: object) -> bool:
        return True


def poison(monkeypatch: pytest.MonkeyPatch, *, frame: int) -> None:
    """Store the rows of one frame as NaN, so that whatever reads them next returns NaN."""
    push = RingCache.push

    def poisoned(self: RingCache, rows: dict[str, np.ndarray]) -> None:
        is_bad = self.num_frames == frame
        push(self, {name: np.full_like(row, np.nan) if is_bad else row for name, row in rows.items()})

    monkeypatch.setattr(RingCache, "push", poisoned)


@pytest.mark.parametrize(("frame", "level"), [(0, "D"), (7, "F"), (9, "E")])
def test_nan_fails_where_it_comes_up_and_what_lies_before_it_was_compared(
    frame: int, level: str, bundle_fp32: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, frame=frame)
    report = check(bundle_fp32, tiny)
    assert not report.passed and report.first_failed_graph == "temporal" and report.first_failed_level == level
    failed = {row.tensor for row in report.rows if not row.passed}
    assert "features" in failed and "graph 'temporal' returned NaN or infinity" in report.failure_text()
    trunk = next(row for row in report.rows if row.tensor == "trunk_features")
    assert trunk.passed and trunk.num_compared == frame + 1
    levels = report.levels()
    assert levels[level].passed is False and levels["J"].passed is None and "stream ended early" in levels["J"].detail
    assert report.not_executed == {"the rest of this check": f"the stream ended at {report.differences[-1].where}"}


def test_nan_of_the_first_frame_is_a_report_too(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy, pvc_export: Run, tmp_path: Path
) -> None:
    bundle, page, xml = copy_bundle(bundle_fp32), tmp_path / "report.html", tmp_path / "junit.xml"
    edit_graph(bundle, "trunk", spoil)
    pvc_export("check", bundle, "--report", page, "--junit", xml).says(
        3, "trunk/trunk_features: ", " values are NaN or infinite at frame 0", "First failing graph: 'trunk'"
    )
    assert "NaN or infinite at frame 0" in page.read_text(encoding="utf-8")
    assert "NaN or infinite at frame 0" in xml.read_text(encoding="utf-8")


@pytest.mark.parametrize("graph", ["llm", "head"])
def test_nan_of_the_language_side_is_named_too(
    graph: str, bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy
) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_graph(bundle, graph, spoil)
    report = check(bundle, tiny)
    assert not report.passed and report.first_failed_graph == graph
    assert all(row.passed for row in report.rows if row.graph in VISION_GRAPHS)


def spoil(model: onnx.ModelProto) -> None:
    """Make the first output infinite, as an overflow would."""
    graph = model.graph
    name = graph.output[0].name
    node = next(node for node in graph.node if name in node.output)
    node.output[list(node.output).index(name)] = f"{name}.finite"
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(np.inf), "infinite"))
    graph.node.append(onnx.helper.make_node("Add", [f"{name}.finite", "infinite"], [name]))


def test_a_reference_that_is_nan_proves_nothing() -> None:
    good, bad = np.ones((1, 4)), np.full((1, 4), np.nan)
    found = [
        compare_arrays(good, want, **WORKED | {"where": Place("token", i)}) for i, want in enumerate((good, bad, good))
    ]
    (row,) = worst_rows(map(noise_of(good * 1.01, good).judged, found))
    assert not row.passed and row.worst.where == Place("token", 1) and row.num_compared == 3
    assert "4 values of the reference itself are NaN or infinite at token 1" in row.text()


def noise_of(coarse: np.ndarray, fine: np.ndarray) -> NoiseTable:
    """The noise table of the worked example's tensor."""
    return NoiseTable([compare_arrays(coarse, fine, **WORKED | {"rung": Rung("torch", "fp32")})])


def test_a_limit_is_the_factor_times_the_noise_of_that_tensor_at_that_kind_of_place() -> None:
    want = np.array([[1.0, 2.0, 3.0, 4.0]])
    quiet, loud = (WORKED | {"rung": Rung("torch", "fp32"), "where": Place(kind)} for kind in ("token", "position"))
    noise = NoiseTable(
        [compare_arrays(want * 1.01, want, **quiet), compare_arrays(want * [1, 1, 1, 1.5], want, **loud)]
    )
    one = noise.judged(compare_arrays(want, want, **WORKED))
    other = noise.judged(compare_arrays(want, want, **WORKED | {"where": Place("position", 3)}))
    assert one.noise["rel_l2"] == pytest.approx(0.01) and other.noise["rel_l2"] == pytest.approx(2 / np.sqrt(30))
    factors = factors_of(Rung("bundle", "fp32"))
    assert one.limits == {metric: max(factors[metric] * one.noise[metric], FLOOR) for metric in GATED}
    assert one.limits["cosine_gap"] == FLOOR < other.limits["cosine_gap"]
    elsewhere = noise.judged(compare_arrays(want, want, **WORKED | {"where": Place("stream")}))
    assert elsewhere.noise == {metric: max(one.noise[metric], other.noise[metric]) for metric in GATED}


def test_a_tensor_whose_noise_was_not_measured_is_an_error() -> None:
    want = np.ones((1, 4))
    with pytest.raises(SpecError, match="no rounding noise was measured for 'head/logits' in fp32"):
        NoiseTable([]).judged(compare_arrays(want, want, **WORKED))


@pytest.mark.parametrize("narrow", [stop_the_clock, round_the_clock], ids=lambda f: f.__name__)
@pytest.mark.parametrize("graph", ["temporal", "compressor"])
def test_a_clock_that_fails_after_minutes_is_seen(
    graph: str, narrow: Callable[..., None], bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy
) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_graph(bundle, graph, narrow)
    report = check(bundle, tiny)
    assert not report.passed and report.first_failed_graph == graph


def test_a_stream_that_sees_another_stream_s_rows_is_seen(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy
) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_graph(bundle, "llm", first_stream_for_all)
    report = check(bundle, tiny)
    assert not report.passed and "stream 1 of 2" in report.failure_text()


def test_an_output_of_another_shape_is_a_difference_and_the_rest_is_compared(
    bundle_fp32: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, pvc_export: Run, tmp_path: Path
) -> None:
    def cut(*args: object, **options: object) -> RecordedStream:
        recorded = stream_clip(*args, **options)  # type: ignore[arg-type]
        recorded.vision[3]["compressor/frame_embeds"] = recorded.vision[3]["compressor/frame_embeds"][:, :-1]
        logits = recorded.language_calls["head"][1]
        logits["logits"] = logits["logits"][:, :-4]
        return recorded

    monkeypatch.setattr("pvc_export.parity.check.stream_clip", cut)
    report = check(bundle_fp32, tiny)
    failed = {row.worst.name: row for row in report.rows if not row.passed}
    assert list(failed) == ["compressor/frame_embeds", "head/logits"] and not report.missing
    times = clock_times(Manifest.load(bundle_fp32))
    assert failed["compressor/frame_embeds"].num_compared == 2 * 4 + 2 + 2 + 2 + len(times)
    faults = [fault.what for fault in report.faults()]
    assert faults == [
        "its shape is (1, 3, 64), expected (1, 4, 64), at frame 3",
        "its shape is (1, 260), expected (1, 264), at token 1",
    ]
    assert [one["shapes"] for one in report.to_json()["frames"] if "shapes" in one][0] == ((1, 3, 64), (1, 4, 64))
    monkeypatch.setattr("pvc_export.parity.check.climb", lambda *_, **__: Evidence())
    pvc_export(
        "check", bundle_fp32, "--report", page := tmp_path / "page.html", "--junit", xml := tmp_path / "j.xml"
    ).says(
        3,
        "FAIL: ",
        *faults,
        "First failing graph: 'compressor'",
        "Every operation is right on the reference's inputs",
    )
    assert all(fault in path.read_text(encoding="utf-8") for fault in faults for path in (page, xml))


def test_an_output_that_was_never_compared_fails(
    bundle_fp32: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("compare_language", "probe_batch", "probe_context"):
        monkeypatch.setattr(f"pvc_export.parity.check.{step}", lambda *_: Evidence())
    report = check(bundle_fp32, tiny)
    assert not report.passed
    assert set(report.missing) >= {"embed/inputs_embeds", "head/logits", "llm/hidden", "llm/present.0.key"}


def test_another_model_is_no_reference(bundle_fp32: Path) -> None:
    with pytest.raises(ModelError, match="the weights of the reference 'tiny' have the hash") as info:
        check(bundle_fp32, load_model("tiny", seed=1))
    assert "of 'tiny', from which the bundle was made" in info.value.expected


@pytest.mark.usefixtures("shared_graphs")
def test_a_context_too_short_for_the_clip_still_checks_every_frame(small: LoadedModel, tmp_path: Path) -> None:
    from engines.spec import StreamLimits
    from engines.target import load_target
    from pvc_export.bundles.export import ExportRequest, export

    limits = StreamLimits(window=3, context=128, bucket=64)  # holds 4 frames and the question; the clip has 8
    request = ExportRequest(out=tmp_path / "short", target=load_target("cpu"), precision="fp32", limits=limits)
    report = export(small, request)
    for row in report.rows:
        assert row.graph not in VISION_GRAPHS or num_compared(report, row.worst, "frame") == 8 + 2


WORKED: dict[str, Any] = {
    "rung": Rung("bundle", "fp32"), "graph": "head", "tensor": "logits", "where": Place("token"),
}  # fmt: skip
