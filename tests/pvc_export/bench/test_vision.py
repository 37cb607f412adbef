"""Benchmarks: compared variants are equal, variants that are not run state why, and the figures are correct.

Nothing here is timed, because a time measured on a test machine means nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pvc_export.bench.vision as bench_module
from engines.errors import BundleError, ParityError
from engines.manifest import Manifest
from engines.session import OrtSession
from engines.sizes import resident_bytes
from engines.vision import VisionEncoder
from pvc_export.bench.baselines import GEMM_SIZE, gemm_peak
from pvc_export.bench.bundle import MIN_FRAMES, NUM_AROUND, StreamReport, bench_bundle, describe_stream
from pvc_export.bench.compare import LIMIT, Report, count_flops, difference
from pvc_export.bench.rounds import Clocked, Spread, interleave, ratio
from pvc_export.bench.vision import VisionBench
from pvc_export.bench.vision_variants import SIZES, Scene, eager_step, our_sessions, our_step
from pvc_export.cli import main
from pvc_export.terminal.facts import cpu_name
from pvc_ref import PVC
from pvc_ref.config import CompressorConfig

from .operations import linear, step_flops

W = 5
VARIANTS = ["eager", "compile", "ort-default", "ours", "int8"]


@pytest.fixture(scope="module")
def scene() -> Scene:
    with torch.no_grad():
        return Scene.render(SIZES["tiny"], window=W)


@pytest.fixture(scope="module")
def sessions(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OrtSession]:
    return our_sessions(scene, tmp_path_factory.mktemp("graphs"), threads=1)


@pytest.fixture(scope="module")
def report(sessions: dict[str, OrtSession]) -> Report:
    def opened(scene: Scene, folder: Path, **options: Any) -> dict[str, OrtSession]:
        """Reuse one export: weights and window are the same."""
        return our_sessions(scene, folder, **options) if options.get("quantization") else sessions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "our_sessions", opened)
        return VisionBench(size="tiny", window=W, rounds=3, skip=("compile",)).run()


@pytest.fixture(scope="module")
def stream(bundle_fp32: Path) -> StreamReport:
    return bench_bundle(bundle_fp32, num_frames=MIN_FRAMES)


# -- five variants ---------------------------------------------------------------------------------------------


def test_every_variant_has_a_row_and_every_row_that_ran_computed_what_eager_computes(report: Report) -> None:
    assert [row.variant for row in report.rows] == VARIANTS
    ran = {row.variant: row for row in report.rows if row.not_run is None}
    assert set(ran) == set(VARIANTS) - {"compile"}
    assert ran["eager"].max_difference == 0.0
    for name in ("ort-default", "ours"):
        found = ran[name].max_difference
        assert found is not None and 0 < found < 1e-5  # 1e-6 here; exactly 0: eager compared with itself
    rounded = ran["int8"].max_difference
    assert rounded is not None and 1e-4 < rounded < 0.3, "it rounds"


def test_figures_of_a_row_follow_from_its_time(report: Report) -> None:
    peak = max(report.peaks["frame"].values())
    for row in report.rows:
        if row.time is not None:
            assert row.time.q1_ms <= row.time.median_ms <= row.time.q3_ms
            assert row.rate == pytest.approx(1e3 * report.facts["gflop"] / row.time.median_ms)
            assert row.percent_of_peak == pytest.approx(100 * row.rate / peak)
    assert next(row for row in report.rows if row.variant == "eager").times_eager == 1.0


def test_the_table_says_where_when_and_how_it_was_measured_and_what_was_not(report: Report) -> None:
    text = "\n".join(report.request.describe(report))
    assert f"pvc-export bench --size tiny --rounds 3 --threads 1 --skip compile --window {W}" in text
    assert cpu_name() in text and torch.__version__ in text and "process CPU time" in text
    assert report.environment["date_utc"] in text
    assert "torch.compile                   not run: left out by --skip compile" in text


@pytest.fixture
def no_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace both exported variants by eager, for tests of what a bench does with its variants."""
    monkeypatch.setattr(bench_module, "default_step", lambda scene, path, *, threads: eager_step(scene))
    monkeypatch.setattr(bench_module, "our_sessions", lambda scene, folder, **options: {})
    monkeypatch.setattr(bench_module, "our_step", lambda scene, sessions: eager_step(scene))


def test_a_compiler_that_fails_is_a_row_with_its_reason(no_exports: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\n in any of these places")

    monkeypatch.setattr(torch, "compile", fail)
    rows = VisionBench(size="tiny", window=2, rounds=1).run().rows
    assert {row.variant: row.not_run for row in rows if row.not_run} == {
        "compile": "No working C++ compiler found in any of these places"
    }


def test_a_variant_that_computes_something_else_is_not_compared(
    no_exports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_a_little(scene: Scene, sessions: Any) -> Callable[[], np.ndarray]:
        return lambda: eager_step(scene)() * (1 + 2 * LIMIT)

    monkeypatch.setattr(bench_module, "our_step", off_by_a_little)
    with pytest.raises(ParityError) as caught:
        VisionBench(size="tiny", window=2, rounds=1, skip=("compile",)).run()
    assert "variant 'frame/ours' differs from torch eager by 2.0e-04" in caught.value.what
    assert f"at most {LIMIT:.0e}" in caught.value.expected and caught.value.exit_code == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0 + 2 * LIMIT])
def test_a_value_beyond_the_limit_or_not_a_number_is_an_error(value: float) -> None:
    with pytest.raises(ParityError):
        difference(np.array([value, 0.5]), np.array([1.0, 0.5]), name="ours")
    assert difference(np.array([1.0 + LIMIT / 2, 0.5]), np.array([1.0, 0.5]), name="ours") > 0


def test_our_step_is_the_same_frame_every_time_and_depends_on_every_past_frame(
    scene: Scene, sessions: dict[str, OrtSession]
) -> None:
    """Guards against two faults: repeated steps that see their own committed frame, and a past that is never read."""
    step = our_step(scene, sessions)
    first = step()
    np.testing.assert_array_equal(step(), first)
    for index in range(W - 1):
        past = tuple((key, value.index_fill(1, torch.tensor([index]), 0.0)) for key, value in scene.state.past)
        changed = replace(scene, state=replace(scene.state, past=past))
        assert np.abs(our_step(changed, sessions)() - first).max() > 1e-3


def test_threads_of_torch_are_what_they_were_before(no_exports: None) -> None:
    before = torch.get_num_threads()
    VisionBench(size="tiny", window=2, rounds=1, threads=before + 1, skip=("compile",)).run()
    assert torch.get_num_threads() == before


# -- operations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pvc", "pixel_shuffle"])
@pytest.mark.parametrize("window", [2, 7])
def test_operations_counted_are_those_that_follow_from_the_config(kind: Any, window: int) -> None:
    config = replace(SIZES["tiny"], compressor=CompressorConfig(kind=kind, num_tokens=4))
    scene = Scene.render(config, window=window)
    with torch.no_grad():
        assert count_flops(eager_step(scene)) == step_flops(config, window=window)


@pytest.mark.parametrize("size", ["mid", "half"])
def test_operations_counted_of_the_large_sizes_are_those_that_follow_from_the_config(size: str) -> None:
    """Counted on the meta device, which computes nothing."""
    config = SIZES[size]
    with torch.device("meta"):
        model = PVC(config)
        frame = torch.zeros(1, 448, 448, 3, dtype=torch.uint8)
        row = torch.zeros(1, 15, config.vision.num_positions, config.vision.num_heads, config.vision.head_dim)
        x, times, bias = model.trunk(frame), torch.zeros(1), torch.zeros(1, 1, 16)
        past = [(row, row)] * config.vision.num_temporal_layers

        def step() -> None:
            model.trunk(frame)
            features, _ = model.temporal(x[:, None], times[:, None], past, bias)
            model.compressor(features[:, 0], times)

        assert count_flops(step) == step_flops(config, window=16)


def test_a_product_counts_twice_its_multiplications_and_all_else_nothing() -> None:
    layer, rows, scores = torch.nn.Linear(24, 7), torch.zeros(5, 24), torch.zeros(2, 3, 5, 8)
    with torch.no_grad():
        assert count_flops(lambda: layer(rows)) == linear(5, 24, 7)
        assert count_flops(lambda: scores @ scores.mT) == 2 * 3 * linear(5, 8, 5)
        assert count_flops(lambda: torch.nn.functional.gelu(rows).softmax(-1) + rows.mean()) == 0


def test_both_peaks_multiply_the_same_matrices() -> None:
    products = [np.asarray(run()).reshape(GEMM_SIZE, GEMM_SIZE) for run in gemm_peak().runs.values()]
    assert gemm_peak().work == linear(GEMM_SIZE, GEMM_SIZE, GEMM_SIZE) / 1e9
    np.testing.assert_allclose(products[0], products[1], rtol=0, atol=1e-3)  # sums of 1024 products near 1
    assert np.abs(products[0]).max() > 100


# -- measuring -------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_each_starts_one_step_further_on() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(steps, rounds=4, threads=1)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_of_runs_in_a_row_the_mean_counts_but_the_first_does_not() -> None:
    seconds = iter([9.0, 1.0, 2.0, 3.0, 9.0, 2.0, 2.0, 5.0])
    runs = {
        "token": lambda: Clocked(result="t", seconds=next(seconds)),
        "frame": lambda: Clocked(result="f", seconds=0.5),
    }
    seen: list[str] = []
    found = interleave(runs, rounds=2, threads=1, in_a_row={"token": 3}, look=lambda _, result: seen.append(result))
    assert found == {"token": [2.0, 3.0], "frame": [0.5, 0.5]}
    assert "".join(seen) == "tttt" + "f" + "f" + "tttt"


def test_every_result_is_looked_at() -> None:
    seen: list[tuple[str, int]] = []
    interleave({"a": lambda: 1, "b": lambda: 2}, rounds=2, threads=2, look=lambda *pair: seen.append(pair))
    assert seen == [("a", 1), ("b", 2), ("b", 2), ("a", 1)]


def test_a_ratio_is_taken_within_rounds_so_a_machine_that_slows_down_does_not_change_it() -> None:
    assert ratio([2.0, 4.0, 20.0], [1.0, 2.0, 10.0]) == 2.0


def test_a_spread_is_median_and_quartiles_in_milliseconds() -> None:
    assert Spread.of([0.005, 0.001, 0.002, 0.003, 0.004]) == Spread(median_ms=3.0, q1_ms=2.0, q3_ms=4.0)
    assert Spread.of([0.5]) == Spread(median_ms=500.0, q1_ms=500.0, q3_ms=500.0)


def test_resident_memory_grows_by_what_is_written() -> None:
    before = resident_bytes()
    if before is None:
        pytest.skip("this system has no /proc/self/status")
    block = np.ones(2**26, dtype=np.uint8)
    after = resident_bytes()
    assert after is not None and 0.9 * block.nbytes < after - before < 2 * block.nbytes


# -- a bundle --------------------------------------------------------------------------------------------------


def test_parts_of_a_frame_are_timed_for_every_frame_and_add_up_to_it(stream: StreamReport) -> None:
    assert list(stream.parts) == ["resize", "trunk", "temporal", "compressor", "commit"]
    total = sum(part.median_ms for part in stream.parts.values())
    assert 0.5 * stream.frame.median_ms < total < 1.2 * stream.frame.median_ms
    assert stream.frames_per_s == pytest.approx(1e3 / stream.frame.median_ms)
    assert stream.num_frames == MIN_FRAMES + NUM_AROUND // 2
    assert (stream.early.frame_index, stream.late.frame_index) == (50, MIN_FRAMES)


def test_bytes_written_per_frame_are_the_bytes_that_change_in_the_rings(
    stream: StreamReport, bundle_fp32: Path, frames: list[np.ndarray]
) -> None:
    from engines import open_bundle
    from engines.preprocess import to_model_frame

    bundle = open_bundle(bundle_fp32)
    encoder = VisionEncoder(bundle.sessions)
    before = {name: array.copy() for name, array in encoder.ring.feeds().items() if name != "slot_mask"}
    encoder.commit(encoder.encode(to_model_frame(frames[0], size=bundle.manifest.shape.image_size)))
    changed = sum(int((encoder.ring.feeds()[name] != array).sum()) * array.itemsize for name, array in before.items())
    assert changed == stream.state_bytes


def test_a_stream_report_says_what_computed_it(stream: StreamReport) -> None:
    text = "\n".join(describe_stream(stream))
    assert "fp32 graphs, run on ONNX Runtime CPU, computed in float32\n" in text
    assert f"({stream.state_bytes} bytes) written to state per frame" in text and "frame 50:" in text


def test_a_damaged_bundle_is_not_measured(bundle_fp32: Path, copy_bundle: Callable[[Path], Path]) -> None:
    folder = copy_bundle(bundle_fp32)
    with (folder / "graphs" / "trunk.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="trunk.onnx"):
        bench_bundle(folder, num_frames=MIN_FRAMES)


def test_measuring_a_bundle_loads_no_torch(bundle_fp32: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pvc_export.bench.bundle import bench_bundle; "
        f"bench_bundle(Path({str(bundle_fp32)!r}), num_frames={MIN_FRAMES}); print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# -- the command line ------------------------------------------------------------------------------------------


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pvc-export", "bench", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_both_modes_print_one_json_object(
    no_exports: None,
    bundle_fp32: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli(monkeypatch, bundle_fp32, "--frames", MIN_FRAMES, "--json") == 0
    stream = json.loads(capsys.readouterr().out)
    assert stream["state_bytes"] == sum(s.row_bytes for s in Manifest.load(bundle_fp32).graphs["temporal"].states)
    assert run_cli(monkeypatch, "--size", "tiny", "--window", 2, "--rounds", 1, "--skip", "compile", "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in compared["rows"]] == VARIANTS
    assert compared["limit"] == LIMIT and compared["environment"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "medium"], "expected one of tiny, mid, half"),
        (["--skip", "eager"], "expected one of compile"),
        (["--frames", 200], "--frames needs a BUNDLE"),
        (["folder", "--size", "mid", "--rounds", 2], "--size, --rounds cannot be given with a BUNDLE"),
        (["folder", "--frames", 99], "--frames"),
    ],
)
def test_flags_that_contradict_each_other_are_usage_errors(
    arguments: list[object], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run_cli(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
