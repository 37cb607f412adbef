"""pvc-export as a user sees it: commands, exit codes, messages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.spec import GRAPH_NAMES
from engines.video import write_video
from pvc_export.controls.graph_edits import edit_graph, roll_slot_mask
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.clip import render_clip
from pvc_export.terminal import interrupt
from pvc_ref.checkpoint.folder import save as save_model

from .conftest import Run

ROOT = Path(__file__).parent.parent.parent
EXPORTING = "tests.pvc_export.command_line"


def in_a_process(
    *args: object, module: str = "pvc_export.cli", cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process without a terminal; `pvc_export` runs it in this one."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **(env or {})}
    command = [sys.executable, "-m", module, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, render_clip(20, seed=5), fps=10.0)
    return path


@pytest.fixture(scope="module")
def small_folder(small: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_model(small.model, folder, tokenizer=small.tokenizer)
    return folder


def test_run_streams_a_video_and_matches_the_reference(bundle_fp16: Path, clip: Path) -> None:
    result = in_a_process("run", bundle_fp16, "--video", clip, "--ask", "What moves?", "--frames", 10, "--reference")
    assert result.returncode == 0, result.stderr
    assert "192x144, 20 frames, 10.00 fps" in result.stdout
    assert "reference: equal (32 greedy tokens)" in result.stdout
    assert "the tokens below have no meaning" in result.stdout and "answer:" not in result.stdout


def test_run_prints_one_json_object(bundle_fp16: Path, clip: Path, pvc_export: Run) -> None:
    result = pvc_export("run", bundle_fp16, "--video", clip, "--frames", 0, "--max-new-tokens", 5, "--json")
    data = json.loads(result.out)
    assert result.exit_code == 0 and data["num_frames"] == 20 and len(data["answer"]["token_ids"]) == 5
    assert data["random_weights"] is True and set(data["median_ms"]) == {
        "preprocess_ms",
        "vision_ms",
        "ingest_ms",
        "prepare_ms",
    }


def test_onnx_makes_a_bundle_that_check_passes(small_folder: Path, tmp_path: Path, pvc_export: Run) -> None:
    made = in_a_process("onnx", "-m", small_folder, "-o", tmp_path / "b", "--window", 3, "--json", module=EXPORTING)
    assert made.returncode == 0, made.stderr
    receipt = json.loads(made.stdout)
    assert receipt["parity"]["passed"] is True and receipt["precision"] == "fp32"
    checked = pvc_export("check", tmp_path / "b", "--json")
    assert checked.exit_code == 0 and json.loads(checked.out)["num_rows"] == 10 + 10 + 5


def test_check_exits_3_and_names_the_graph(
    bundle_fp16: Path, copy_bundle: Callable[[Path], Path], pvc_export: Run
) -> None:
    bundle = copy_bundle(bundle_fp16)
    edit_graph(bundle, "temporal", roll_slot_mask)
    result = pvc_export("check", bundle, "--json")
    assert result.exit_code == 3
    assert json.loads(result.out)["passed"] is False
    assert "First failing graph: 'temporal'" in result.message
    assert "Traceback" not in result.message


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["trt", "--fp16", "--fp32"], 2, "contradict each other"),
        (["trt", "--target", "rxt"], 2, "Did you mean 'rtx'?"),
        (["trt", "--target", "cpu"], 2, "use: pvc-export onnx"),
        (["trt", "--context", "1000"], 2, "the next multiple is 1024"),
        (["trt", "--window", "zero"], 2, "valid integer"),
        (["trt", "--seed", "3"], 2, "'shapes' has its own; use it with -m tiny"),
        (["trt", "--target", "jetson-orin-jp62", "--int4", "llm"], 2, "slower than float16. It has --int8 vision"),
        (["trt", "--target", "tensorrt-10", "--int4", "llm"], 2, "int4 blocks need opset 21"),
        (["trt", "--int4", "vision"], 2, "expected one of llm"),
        (["trt", "--unfuse", "heads"], 2, "expected one of spatial, temporal, llm"),
        (["onnx", "--unfuse", "llm"], 2, "target 'cpu' has none: ONNX Runtime runs"),
        (["onnx", "--target", "cuda", "--unfuse", "spatial"], 2, "target 'cuda' has none"),
        (["trt", "--int4", "llm", "--int4-block", "48"], 2, "in blocks of 32, 64, 128, not of 48"),
        (["trt", "--int4", "llm", "--quantize-by", "guess"], 2, "expected one of round, search"),
        (["trt", "--int4-block", "64"], 2, "needs --int4"),
        (["trt", "--int8", "llm"], 2, "target 'rtx' has no --int8 llm: TensorRT scales a matmul's input by one"),
        (["trt", "--int8", "vision", "--calibrate-by", "guess"], 2, "expected one of error, max, percentile"),
        (["trt", "--int8", "vision", "--calibrate", "none.mp4"], 6, "none.mp4"),
        (["trt", "--calibrate", "clip.mp4"], 2, "--calibrate needs --int8 vision on a TensorRT target"),
        (["onnx", "--int8", "vision", "--calibrate-by", "max"], 2, "'cpu' computes scales at run time"),
        (["onnx", "--int8", "sight"], 2, "expected one of vision, llm, head"),
        (["onnx", "--int8", "llm", "--int4", "llm"], 2, "contradict each other"),
        (["chekc", "x"], 2, "check"),
        (["onnx", "-m", "tinny"], 6, "Did you mean 'tiny'?"),
        (["check", "nowhere"], 6, "is not a folder\nexpected: a bundle"),
        (["run", "nowhere", "--video", "nothing.mp4"], 6, "nothing.mp4"),
        (["run", "nowhere"], 2, "--video"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_its_exit_code_and_a_message_that_helps(
    tmp_path: Path, args: list[str], exit_code: int, message: str, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pvc_export(*args)
    assert result.exit_code == exit_code, result.message
    assert message in result.message
    assert "Traceback" not in result.message and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"a text file", None], ids=["empty", "text", "truncated"])
def test_a_video_that_is_none_exits_6(
    bundle_fp16: Path, clip: Path, tmp_path: Path, content: bytes | None, pvc_export: Run
) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(clip.read_bytes()[:300] if content is None else content)
    result = pvc_export("run", bundle_fp16, "--video", path)
    assert result.exit_code == 6 and "broken.mp4" in result.message and "Traceback" not in result.message


def test_a_damaged_bundle_exits_6(bundle_fp16: Path, copy_bundle: Callable[[Path], Path], pvc_export: Run) -> None:
    bundle = copy_bundle(bundle_fp16)
    (bundle / "graphs/llm.onnx").write_bytes(b"")
    result = pvc_export("check", bundle)
    assert result.exit_code == 6 and "llm.onnx has 0 bytes" in result.message


def test_doctor_reports_every_target_as_json(pvc_export: Run) -> None:
    result = pvc_export("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(result.out)["findings"]}
    assert result.exit_code == 0 and findings["target cpu"]["ok"] and findings["torch"]["ok"]
    assert {"gpu", "disk", "python", "target rtx"} <= set(findings)


def test_doctor_says_of_a_target_whether_its_engines_can_be_built_here(pvc_export: Run) -> None:
    result = pvc_export("doctor", "--target", "jetson-orin-jp62", "--json")
    data = json.loads(result.out)
    states = {finding["name"]: finding["state"] for finding in data["device"]}
    assert states["board"] == "error" and result.exit_code == 4 and data["findings"]
    assert pvc_export("doctor", "--target", "jetson").exit_code == 6


def test_doctor_says_what_to_install_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from pvc_export.commands.doctor import examine

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    findings = {finding.name: finding for finding in examine()}
    assert not findings["tensorrt_rtx"].ok and findings["tensorrt_rtx"].remedy == "pip install -e '.[rtx]'"
    assert not findings["target rtx"].ok and "tensorrt_rtx" in findings["target rtx"].detail
    assert findings["target cpu"].ok


def test_doctor_names_an_onnxruntime_that_is_too_old_for_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from pvc_export.commands.doctor import examine

    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    findings = {finding.name: finding for finding in examine()}
    default = findings["target cpu"]
    assert not default.ok and "onnxruntime 1.23.2 is too old" in default.detail
    assert "onnxruntime 1.25 or later" in default.detail and "pip install 'onnxruntime>=1.25'" in default.remedy
    assert "too old" not in findings["target tensorrt-10"].detail


def test_a_runtime_that_is_too_old_is_known_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    export = pvc_export("onnx", "-o", tmp_path / "b")
    export.says(4, "onnxruntime 1.23.2 is too old", "pip install 'onnxruntime>=1.25'")
    assert "export trunk" not in export.out and not list(tmp_path.iterdir())


def test_help_names_every_command_without_loading_torch() -> None:
    code = (
        "import sys; sys.argv = ['pvc-export', '--help']\n"
        "from pvc_export.cli import app\n"
        "try: app()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert all(command in result.stdout for command in ("trt", "onnx", "check", "run", "inspect", "doctor"))
    assert result.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        ("ParityError", 3),
        ("BackendUnavailable", 4),
        ("BuildError", 5),
        ("BundleError", 6),
        ("ModelError", 6),
        ("StreamFull", 6),
    ],
)
def test_every_error_of_the_tree_ends_as_four_lines_and_its_exit_code(
    error: str, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import engines.errors
    from pvc_export import cli

    def fail() -> None:
        raise getattr(engines.errors, error)("it happened", expected="another thing", cause="a mistake", fix="mend it")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(interrupt.signals, "install", lambda **_: None)  # this process's signals belong to pytest
    monkeypatch.setattr(sys, "argv", ["pvc-export", "--json"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == exit_code
    said = "error: it happened\nexpected: another thing\nlikely: a mistake\nfix: mend it\n"
    out, err = capsys.readouterr()
    assert err == said and json.loads(out)["error"] == error


def test_a_missing_runtime_exits_4_before_any_work(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "tensorrt_rtx.py").write_text(
        "raise ImportError('libnvonnxparser.so.11: cannot open shared object file')"
    )
    result = in_a_process("trt", "-o", tmp_path / "b", env={"PYTHONPATH": f"{shadow}{os.pathsep}{ROOT}"})
    assert result.returncode == 4 and "libnvonnxparser" in result.stderr and "pip install -e '.[rtx]'" in result.stderr
    assert "export trunk" not in result.stdout and not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGINT, "export trunk"), (signal.SIGINT, "export head"), (signal.SIGTERM, "export head")],
    ids=["SIGINT in export", "SIGINT in build", "SIGTERM in build"],
)
def test_an_interrupt_ends_the_command_and_leaves_nothing(
    small_folder: Path, tmp_path: Path, number: signal.Signals, after: str
) -> None:
    """Interrupts the export and the engine builds, whose native code would otherwise swallow the interrupt."""
    command = [sys.executable, "-u", "-m", EXPORTING, "trt", "-m", str(small_folder), "-o", str(tmp_path / "b")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while after not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
        assert "interrupted; nothing was published" in process.stderr.read()
    assert not list(tmp_path.iterdir())


def test_a_failure_with_json_is_an_object_too(tmp_path: Path, pvc_export: Run) -> None:
    result = pvc_export("check", tmp_path / "nowhere", "--json")
    data = json.loads(result.out)
    assert result.exit_code == data["exit_code"] == 6 and data["error"] == "BundleError"
    assert data["what"] in result.message


def test_json_never_holds_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from engines.terminal import print_json

    print_json({"rows": [{"a": float("nan"), "b": [float("inf"), 1.5]}], "n": 3})
    assert json.loads(capsys.readouterr().out) == {"rows": [{"a": None, "b": [None, 1.5]}], "n": 3}


def test_frames_that_will_not_fit_are_refused_before_the_first(bundle_fp16: Path, clip: Path, pvc_export: Run) -> None:
    result = pvc_export("run", bundle_fp16, "--video", clip, "--frames", 40)
    assert (
        result.exit_code == 6
        and "fix: sample fewer frames with --frames, or export with --context 768" in result.message
    )
    assert "stream" not in result.out


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_model_folder_named_dot_gets_the_folder_s_own_name(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "mine"))
    monkeypatch.chdir(folder)
    result = pvc_export("onnx", "-m", ".")
    assert result.exit_code == 0, result.message
    assert (folder / "build/mine/manifest.json").is_file() and not (folder / "build/manifest.json").exists()


def test_a_bundle_copied_without_its_engines_is_called_so_and_runs_on_the_cpu(
    bundle_fp16: Path, copy_bundle: Callable[[Path], Path], pvc_export: Run
) -> None:
    whole = pvc_export("inspect", bundle_fp16).out
    told = pvc_export("run", bundle_fp16, "--ask", "Who?", "--runtime", "cpu", "--json").out
    assert (
        "NOT HERE" not in whole and json.loads(pvc_export("inspect", bundle_fp16, "--json").out)["missing_files"] == []
    )
    bundle = copy_bundle(bundle_fp16)
    shutil.rmtree(bundle / "engines")
    out = pvc_export("inspect", bundle).out
    assert "engines     5 of 5 are NOT HERE: the bundle was copied without them" in out
    assert f"pvc-export run {bundle} --runtime cpu" in out
    (size,) = (line for line in out.splitlines() if line.startswith("size "))
    assert size not in whole and f"in {sum(p.is_file() for p in bundle.rglob('*')) - 1} files" in size
    missing = json.loads(pvc_export("inspect", bundle, "--json").out)["missing_files"]
    assert len(missing) == 5 and all(name.startswith("engines/") for name in missing)
    answer = json.loads(pvc_export("run", bundle, "--ask", "Who?", "--runtime", "cpu", "--json").out)["answer"]
    assert answer == json.loads(told)["answer"]
    num_files = sum(path.is_file() for path in bundle.rglob("*")) - 1  # the manifest is not listed
    assert f"{num_files} files verified" in pvc_export("run", bundle, "--ask", "Who?", "--runtime", "cpu").out
    pvc_export("run", bundle, "--ask", "Who?", "--runtime", "target").says(
        6, "is missing", "copied without its engines"
    )
    (bundle / "tokenizer.json").unlink()
    assert "missing     tokenizer.json: the bundle cannot run" in pvc_export("inspect", bundle).out


def test_inspect_names_every_graph_and_the_bytes_of_its_state(bundle_fp16: Path, pvc_export: Run) -> None:
    result = pvc_export("inspect", bundle_fp16)
    assert result.exit_code == 0, result.message
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines if "->" in line] == list(GRAPH_NAMES)
    # 2 layers, K and V, 65 x 64 float16: 32.5 KiB per frame, times a window of 4
    assert any(
        "4 caches BWNHD float16, ring, 130.0 KiB per stream, 32.5 KiB written per frame" in line for line in lines
    )
    assert any("fused attention 2 gemm, 2 gemv" in line for line in lines)
    assert "random weights, seed 0: its answers mean nothing" in result.out
    receipt = lines[lines.index("parity      passed") + 1 :]
    assert any(line.split()[:2] == ["weights", "bit"] for line in receipt) and "levels passed" in result.out
    assert not set("{}[]'") & set("".join(receipt)), "a Python dict in a text for people"
    data = json.loads(pvc_export("inspect", bundle_fp16, "--json").out)
    assert data["graphs"]["temporal"]["states"][0]["row_bytes"] == 65 * 64 * 2
    assert pvc_export("inspect", bundle_fp16 / "graphs").exit_code == 6
