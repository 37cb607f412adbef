"""Golden recordings: every kind of bundle reproduces its own, and a fault is located by graph, frame and tensor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.errors import BundleError, SpecError
from engines.golden.check import check_golden, load_golden
from engines.golden.recording import GOLDEN_NAME, Golden, sampled
from engines.golden.replay import GoldenReport, replay
from engines.manifest import Manifest, hash_file
from engines.memory import Array, Tensor
from engines.session import Session, Wrapped
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.golden import record_golden

from ...conftest import WINDOW

BUNDLES = (
    "bundle_fp32",
    "bundle_fp16",
    "bundle_rows",
    "bundle_int4",
    "bundle_int8",
    "bundle_static",
    "bundle_states",
)


def opened(folder: Path) -> Bundle:
    return open_bundle(folder, runtime="cpu")


@pytest.fixture(scope="module")
def golden(bundle_fp32: Path, tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The recording of a float32 bundle with two streams and caches updated in place, read back from its file."""
    path = tmp_path_factory.mktemp("golden") / GOLDEN_NAME
    record_golden(tiny, Manifest.load(bundle_fp32)).save(path)
    assert path.stat().st_size < 500_000
    return Golden.load(path)


@pytest.mark.parametrize("name", BUNDLES)
def test_every_kind_of_bundle_reproduces_its_recording(
    name: str, tiny: LoadedModel, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    golden = record_golden(tiny, Manifest.load(folder))
    bundle = opened(folder)
    report = replay(golden, bundle.sessions)
    assert report.passed, report.summary()
    outputs = {tensor.name for spec in bundle.manifest.graphs.values() for tensor in spec.outputs}
    seen = {one.tensor for one in report.compared} | {name for name in outputs if name.endswith(".scale")}
    assert seen == outputs, "every output of every graph must be compared"
    assert {one.run for one in report.compared if one.graph == "temporal"} >= {0, WINDOW - 1, WINDOW, WINDOW + 1}


def test_a_recording_is_the_same_whenever_it_is_made(golden: Golden, bundle_fp32: Path, tiny: LoadedModel) -> None:
    again = record_golden(tiny, Manifest.load(bundle_fp32))
    assert (again.passes, again.tokens, again.likeliest) == (golden.passes, golden.tokens, golden.likeliest)
    assert np.array_equal(again.frames, golden.frames)
    for one, other in zip(again.samples, golden.samples, strict=True):
        assert one.name == other.name and one.limits == other.limits and one.values.tobytes() == other.values.tobytes()


def test_its_passes_are_what_a_stream_feeds(golden: Golden, bundle_fp32: Path) -> None:
    """The recording uses the reference's prompt and not the runtime's, so the two are compared here."""
    fed: list[int] = []
    bundle = opened(bundle_fp32)

    def run(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fed.append(np.asarray(inputs["inputs_embeds"]).shape[1])
        return session.run(inputs)

    from engines import PVCStream
    from pvc_export.parity.clip import QUESTION

    sessions = {**bundle.sessions, "llm": Wrapped(bundle.sessions["llm"], run)}
    stream = PVCStream(replace(bundle, sessions=sessions), clock="run-on")
    for frame in golden.frames:
        stream.push(frame[..., ::-1])
    stream.score(QUESTION, list(golden.tokens))
    tokens = bundle.manifest.shape.num_frame_tokens
    assert fed == [len(one.ids) + (one.frame is not None) * tokens for one in golden.passes]


Change = Callable[[dict[str, Array], int], None]
"""Changes a graph's outputs in place, given the number of the run."""


def broken(folder: Path, golden: Golden, graph: str, change: Change) -> GoldenReport:
    """Return the report of a bundle whose graph returns changed outputs."""
    count = iter(range(10**6))

    def run(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = {name: np.asarray(value) for name, value in session.run(inputs).items()}
        own = {name: np.array(value) for name, value in outputs.items() if name not in session.spec.aliases}
        change(own, next(count))
        return {**outputs, **own}

    sessions = opened(folder).sessions
    return replay(golden, {**sessions, graph: Wrapped(sessions[graph], run)})


def scale_by(tensor: str, factor: float, first_run: int = 0) -> Change:
    def change(outputs: dict[str, Array], run: int) -> None:
        if run >= first_run:
            outputs[tensor] *= np.asarray(factor, outputs[tensor].dtype)

    return change


@pytest.mark.parametrize(
    ("graph", "tensor", "where"),
    [
        ("trunk", "trunk_features", "frame 0"),
        ("temporal", "features", "frame 0"),
        ("temporal", "new.0.key", "frame 0"),
        ("compressor", "frame_embeds", "frame 0"),
        ("embed", "inputs_embeds", "pass 0"),
        ("llm", "hidden", "pass 0"),
        ("head", "logits", "pass 0"),
    ],
)
def test_an_output_that_is_a_thousandth_off_is_named_first(
    bundle_fp32: Path, golden: Golden, graph: str, tensor: str, where: str
) -> None:
    report = broken(bundle_fp32, golden, graph, scale_by(tensor, 1.001))
    assert not report.passed
    assert report.summary().startswith(f"graph '{graph}', {where}, tensor '{tensor}': ")
    assert "(limit " in report.summary()


def test_a_fault_that_begins_where_the_ring_wraps_is_named_there(bundle_fp32: Path, golden: Golden) -> None:
    report = broken(bundle_fp32, golden, "temporal", scale_by("features", 1.01, first_run=WINDOW))
    assert report.first_failed is not None
    assert (report.first_failed.graph, report.first_failed.where) == ("temporal", f"frame {WINDOW}")


def test_a_graph_that_answers_otherwise_when_repeated_is_told(bundle_fp32: Path, golden: Golden) -> None:
    rng = np.random.default_rng(0)

    def change(outputs: dict[str, Array], run: int) -> None:
        outputs["hidden"] *= np.float32(1 + 1e-7 * rng.integers(1, 3))

    report = broken(bundle_fp32, golden, "llm", change)
    assert report.first_failed is None, "each value is within its limits"
    assert not report.passed
    assert "repeated" in report.summary() and "'llm' returned different values of 'hidden'" in report.summary()


def test_a_graph_that_answers_one_stream_otherwise_than_two_is_told(bundle_fp32: Path, golden: Golden) -> None:
    """TensorRT has separate kernels for exactly one row."""

    def change(outputs: dict[str, Array], run: int) -> None:
        if len(outputs["hidden"]) == 2:
            outputs["hidden"][1] *= np.float32(1.01)

    report = broken(bundle_fp32, golden, "llm", change)
    assert not report.passed and "graph 'llm', pass 0, tensor 'hidden'" in report.summary()
    assert [rule.name for rule in report.rules if rule.passed is False] == ["two rows"]


def test_another_likeliest_token_is_told_and_one_that_nearly_ties_is_not(bundle_fp32: Path, golden: Golden) -> None:
    want = golden.likeliest[2]

    def prefer(margin: float) -> Change:
        def change(outputs: dict[str, Array], run: int) -> None:
            if run % len(golden.likeliest) == 2:
                row = outputs["logits"][0]
                row[(want + 1) % len(row)] = row[want] + margin

        return change

    wide = {one.name: dict.fromkeys(one.limits, 1e9) for one in golden.samples}
    loose = replace(golden, samples=tuple(replace(one, limits=wide[one.name]) for one in golden.samples))
    report = broken(bundle_fp32, loose, "head", prefer(1.0))
    assert [rule.name for rule in report.rules if rule.passed is False] == ["tokens"]
    assert "after 2 answer tokens the likeliest token is" in report.summary()
    assert report.summary().endswith(f"the reference {want}")
    lenient = replace(loose, ties=tuple(1e9 for _ in golden.ties))
    assert broken(bundle_fp32, lenient, "head", prefer(1.0)).passed


def test_nan_ends_the_stream_and_names_the_graph(bundle_fp32: Path, golden: Golden) -> None:
    report = broken(bundle_fp32, golden, "compressor", scale_by("frame_embeds", np.nan, first_run=2))
    assert not report.passed
    assert "'compressor'" in report.summary()
    assert any("NaN" in rule.detail for rule in report.rules if rule.passed is False)


def test_few_rows_are_sampled_from_the_first_to_the_last() -> None:
    array = np.arange(40.0).reshape(2, 5, 4)
    assert sampled(array, 3)[:, 0].tolist() == [0, 16, 36]
    assert sampled(array[:1, :1], 3).tolist() == [[0, 1, 2, 3]] * 3
    assert sampled(array, 2, np.asarray([1, 3])).tolist() == [[1, 3], [37, 39]]


@pytest.fixture
def with_golden(bundle_fp32: Path, golden: Golden, copy_bundle: Callable[[Path], Path]) -> Path:
    """A bundle whose manifest lists a recording."""
    folder = copy_bundle(bundle_fp32)
    golden.save(folder / GOLDEN_NAME)
    manifest = Manifest.load(folder)
    replace(manifest, files=manifest.files | {GOLDEN_NAME: hash_file(folder / GOLDEN_NAME)}).save(folder)
    return folder


def test_a_bundle_checks_itself_without_torch_or_onnx(with_golden: Path) -> None:
    program = (
        "import sys; sys.argv = ['check', sys.argv[1]]; "
        "import runpy; runpy.run_module('engines.golden.check', run_name='__main__', alter_sys=False)"
    )
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'typer', 'rich', 'pvc_ref', 'cv2'))); "
    found = subprocess.run(
        [sys.executable, "-c", blocked + program, str(with_golden)], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert "pass: " in found.stdout and "ONNX Runtime CPU" in found.stdout


def test_a_recording_of_another_model_or_none_or_half_of_one_is_refused(with_golden: Path, golden: Golden) -> None:
    path = with_golden / GOLDEN_NAME
    whole = path.read_bytes()
    replace(golden, weights_sha256="0" * 64).save(path)
    with pytest.raises(BundleError, match="belongs to another model"):
        load_golden(with_golden, Manifest.load(with_golden))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="cannot be read as a golden recording"):
        check_golden(with_golden)
    path.unlink()
    with pytest.raises(BundleError, match="has no golden recording") as caught:
        check_golden(with_golden)
    assert "--golden" in str(caught.value.fix)


def test_a_context_too_short_for_a_frame_and_an_answer_has_no_recording(bundle_fp32: Path, tiny: LoadedModel) -> None:
    manifest = Manifest.load(bundle_fp32)
    short = replace(manifest, limits=replace(manifest.limits, context=16, bucket=16))
    with pytest.raises(SpecError, match="too short for a check"):
        record_golden(tiny, short)
