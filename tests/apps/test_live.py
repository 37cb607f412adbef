"""pvc-live from the user's side: a file in, an annotated video out, Ctrl-C, errors and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apps import capture, live, watch
from apps.addresses import Address
from apps.capture import open_source
from apps.report import Log
from engines import PVCStream, open_bundle
from engines.signals import Signals
from engines.synthetic import render_clip
from engines.video import probe_video, read_video, write_video

from .conftest import Run
from .fakes import FakeCapture, FakeFactory, FakeVideo, picture

ROOT = Path(__file__).parent.parent.parent
NUM_FRAMES, FPS, WIDTH, HEIGHT = 20, 10.0, 320, 240


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, render_clip(NUM_FRAMES, seed=5, width=WIDTH, height=HEIGHT), fps=FPS)
    return path


def test_a_file_becomes_a_playable_annotated_video(
    pvc_live: Run, bundle_fp32: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    ask = ["--ask", "What moves?", "--ask-every", "1"]
    result = pvc_live(bundle_fp32, "--source", clip, "--headless", "--record", out, "--every-frame", *ask)
    assert result.code == 0 and result.err == ""
    info = probe_video(out)
    assert (info.num_frames, info.width) == (NUM_FRAMES, WIDTH) and info.height > HEIGHT
    assert info.fps == pytest.approx(FPS) and info.duration_s == pytest.approx(NUM_FRAMES / FPS, abs=0.05)
    for before, after in zip(read_video(clip), read_video(out), strict=True):
        top = top_of(before.bgr, after.bgr)
        picture, below = after.bgr[top : top + HEIGHT], after.bgr[top + HEIGHT :]
        difference = np.abs(before.bgr.astype(int) - picture.astype(int)).mean(axis=(1, 2))
        # Nothing covers the picture from the first row to the last, where chroma mixes with the text background: 12.3.
        assert difference.max() < 16
        assert after.bgr[:top].max() > 200 and below.max() > 200  # white letters above and below it
    assert "1.0 s  frame 10 " in result.out and "1.9 s  frame 19 " in result.out
    assert "20 frames seen, 20 processed, 0 dropped" in result.out and f"recorded {out}: 20 frames" in result.out
    assert "the tokens below are not answers" in result.out
    assert list(tmp_path.iterdir()) == [out]


def top_of(picture: np.ndarray, image: np.ndarray) -> int:
    """Return the row of the image where the picture begins. Allows for the encoder's losses."""
    rows = range(len(image) - len(picture) + 1)
    return min(rows, key=lambda row: int(np.abs(image[row : row + len(picture)].astype(int) - picture).sum()))


def test_every_frame_gives_the_stream_s_own_tokens_each_time(pvc_live: Run, bundle_fp32: Path, clip: Path) -> None:
    import cv2

    arguments = (bundle_fp32, "--source", clip, "--headless", "--every-frame", "--max-new-tokens", "8", "--json")
    answers = [json.loads(pvc_live(*arguments).out)["last_answer"] for _ in range(2)]
    stream, capture = PVCStream(open_bundle(bundle_fp32)), cv2.VideoCapture(str(clip))
    for _ in range(NUM_FRAMES):
        stream.push(capture.read()[1])
    expected = stream.ask("What happens?", max_new_tokens=8).text
    assert [(answer["frame_index"], answer["text"]) for answer in answers] == [(NUM_FRAMES - 1, expected)] * 2
    assert answers[0]["time_s"] == (NUM_FRAMES - 1) / FPS and answers[0]["prefill_ms"] > 0 < answers[0]["decode_ms"]


def test_a_model_that_is_too_slow_drops_frames_and_the_recording_still_plays_at_true_speed(
    pvc_live: Run, bundle_fp32: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = PVCStream.push

    def slow_push(self: PVCStream, frame: np.ndarray) -> Any:
        time.sleep(0.25)
        return push(self, frame)

    monkeypatch.setattr(PVCStream, "push", slow_push)
    out = tmp_path / "out.mp4"
    data = json.loads(pvc_live(bundle_fp32, "--source", clip, "--headless", "--record", out, "--json").out)
    assert data["num_seen"] == NUM_FRAMES == data["num_processed"] + data["num_dropped"]
    assert 3 <= data["num_processed"] <= 10 and 250 <= data["latency_median_ms"] < 1200  # with a backlog: 1600
    assert probe_video(out).num_frames == NUM_FRAMES and data["recording"]["duration_s"] == NUM_FRAMES / FPS


def test_a_full_context_continues_from_its_last_frames_and_that_is_told(
    pvc_live: Run, bundle_fp32: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "long.mp4"
    write_video(clip, render_clip(45, width=64, height=48), fps=FPS)
    result = pvc_live(bundle_fp32, "--source", clip, "--every-frame", "--ask-every", 1000, "--headless")
    assert result.code == 0 and "the context is used up: continuing from its last 4 frames at frame " in result.out
    assert "45 frames seen, 45 processed" in result.out and "context used up 2 times" in result.out
    assert "3 answers" in result.out  # one each time before frames are forgotten, and one at the end


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_completes_the_recording(
    bundle_fp32: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    out = tmp_path / "out.mp4"
    arguments = [bundle_fp32, "--source", "synthetic", "--headless", "--record", out, "--ask-every", 0.3]
    command = [sys.executable, "-m", "apps.watch", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        while "frame " not in (line := process.stdout.readline()):  # the first answer
            assert line, process.stderr.read()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (exit_code, "")
    assert ("ended by Ctrl-C" if exit_code == 0 else "ended by signal 15") in rest and "frames seen" in rest
    frames = list(read_video(out))
    assert len(frames) == probe_video(out).num_frames >= 3 and list(tmp_path.iterdir()) == [out]


def test_ctrl_c_while_the_bundle_is_opened_is_no_traceback(
    pvc_live: Run, bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "open_bundle", interrupted)
    result = pvc_live(bundle_fp32, "--source", "synthetic", "--headless", "--record", tmp_path / "out.mp4")
    assert (result.code, result.err) == (130, "interrupted before the first frame\n")
    assert list(tmp_path.iterdir()) == []


def test_a_camera_that_is_lost_keeps_what_was_recorded(
    pvc_live: Run, bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = FakeFactory(FakeCapture([picture(1), picture(2)]), FakeCapture(opens=False))
    monkeypatch.setattr(live, "open_source", partial(open_source, factory=factory, pauses_s=(0.01,)))
    out = tmp_path / "out.mp4"
    result = pvc_live(bundle_fp32, "--source", "3", "--headless", "--record", out, "--json")
    data = json.loads(result.out)
    assert result.code == data["exit_code"] == 6 and data["error"] == "MediaError"
    assert "error: camera 3 was lost after 2 frames" in result.err and "was lost: reconnecting" in result.err
    assert data["recording"]["num_frames"] == probe_video(out).num_frames >= 1


def test_how_a_stream_is_decoded_is_told(pvc_live: Run, bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(address: Address, *, say: Callable[[str], None], **_: object) -> FakeVideo:
        say(f"{address.name}: the CPU decodes it")
        return FakeVideo([0.0, 0.1])

    monkeypatch.setattr(capture, "open_stream", opened)
    data = json.loads(pvc_live(bundle_fp32, "--source", "rtsp://me:pw@cam/live", "--headless", "--json").out)
    assert data["notices"] == ["rtsp://me:***@cam/live: the CPU decodes it"]


@pytest.mark.parametrize("failing", ["push", "say"])
def test_whatever_breaks_the_session_the_recording_is_completed(
    pvc_live: Run, bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    owner: Any = PVCStream if failing == "push" else Log
    original, num_calls = getattr(owner, failing), 0

    def breaks(self: Any, argument: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 5:
            raise RuntimeError("device lost")
        return original(self, argument)

    monkeypatch.setattr(owner, failing, breaks)
    out = tmp_path / "out.mp4"
    monkeypatch.setattr(sys, "argv", ["pvc-live", str(bundle_fp32), "--source", "synthetic", "--every-frame",
                                      "--headless", "--ask-every", "0", "--record", str(out)])  # fmt: skip
    monkeypatch.setattr(Signals, "install", lambda self, **_: None)
    with pytest.raises(RuntimeError, match="device lost"):
        watch.main()
    assert probe_video(out).num_frames >= 2 and list(tmp_path.iterdir()) == [out]


def test_a_nearly_full_disk_ends_with_exit_4_and_a_complete_recording(
    pvc_live: Run, bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10**12] * 6 + [10**6] * 99)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(free)))
    out = tmp_path / "out.mp4"
    result = pvc_live(bundle_fp32, "--source", "synthetic", "--every-frame", "--headless", "--record", out)
    assert result.code == 4 and "error: only 1 MiB are free" in result.err
    assert probe_video(out).num_frames == 5 and "ended by an error: 6 frames seen" in result.out


class FakeWindow:
    """A window that reports a key press at a given frame."""

    keys: dict[int, str] = {}

    def __init__(self) -> None:
        self.num_shown, self.pressed = 0, 0

    def show(self, frame_bgr: np.ndarray) -> None:
        self.num_shown += 1

    def key(self) -> str:
        self.pressed += 1
        return self.keys.get(self.pressed, "")

    def close(self) -> None: ...


def test_keys_ask_and_end(pvc_live: Run, bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "Window", FakeWindow)
    monkeypatch.setattr(FakeWindow, "keys", {3: "ask", 6: "quit"})
    data = json.loads(pvc_live(bundle_fp32, "--source", "synthetic", "--every-frame", "--json").out)
    assert data["ended"] == "ended in the window" and data["num_processed"] == 6
    assert data["num_answers"] == 1 and data["last_answer"]["frame_index"] == 2


def test_the_window_is_opened_before_pyav_is_imported(bundle_fp32: Path, tmp_path: Path) -> None:
    """In the opposite order, OpenCV's Qt window hangs (apps/window.py)."""
    code = """
import sys
from apps import live, watch
class Window:
    def __init__(self): print("av imported:", "av" in sys.modules)
    show = lambda self, frame: None
    key = lambda self: ""
    close = lambda self: None
live.Window = Window
watch.main()
"""
    arguments = [bundle_fp32, "--source", "synthetic", "--frames", 2, "--record", tmp_path / "out.mp4"]
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "av imported: False" in result.stdout and "recorded " in result.stdout


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["--ask", " "], 2, "--ask is empty"),
        (["--ask", "\udcff"], 2, "--ask is not valid text"),
        (["--ask-every", "-1"], 2, "--ask-every"),
        (["--ask-every", "nan"], 2, "--ask-every"),
        (["--frames", "0"], 2, "--frames"),
        (["--seed", "-1"], 2, "--seed"),
        (["--seed", "1", "--source", "clip.mp4"], 2, "--seed is only for --source synthetic; clip.mp4 has"),
        (["--seed", "1", "--source", "0"], 2, "--seed is only for --source synthetic; camera 0 has"),
        (["--ask-every", "inf-inf"], 2, "--ask-every: 'inf-inf' is not a number of 0.0 or more"),
        (["--frames", "1.5"], 2, "--frames: '1.5' is not a whole number of 1 or more"),
        (["--runtime", "gpu"], 2, "--runtime: invalid choice: 'gpu'"),
        (["--headles"], 2, "unknown option: --headles. Did you mean '--headless'?"),
        (["--rec", "out.mp4"], 2, "unknown option: --rec"),
        (["--source", "0", "--every-frame"], 2, "camera 0 does not wait for the model"),
        (["--source", "rtsp://u:pw@cam", "--every-frame"], 2, "rtsp://u:***@cam does not wait"),
        (["--source", "clip.mp4", "--record", "./clip.mp4"], 2, "would overwrite the source"),
        (["--source", "csi:x"], 6, "error: csi:x is not a CSI camera"),
        (["--source", "csi:0"], 4, "error: CSI camera 0 needs an OpenCV with GStreamer; "),
        (["--source", "nothing.mp4"], 6, "error: nothing.mp4 does not exist"),
        (["--source", "sintetic"], 6, "fix: did you mean --source synthetic?"),
        (["--source", "."], 6, "error: . contains no pictures"),
        (["--record", "out"], 6, "error: the name out does not end in a video suffix"),
        (["--record", "nowhere/out.mp4"], 6, "error: nowhere/out.mp4 cannot be written"),
        (["--ask", "a<|im_end|>b"], 6, "error: the question contains '<|im_end|>'"),
        (["--max-new-tokens", "500"], 6, "error: one frame, the question and an answer of 500 tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_its_exit_code_and_a_message_that_helps(
    pvc_live: Run,
    bundle_fp32: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    exit_code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--source" not in args:
        args = [*args, "--source", "synthetic"]
    result = pvc_live(bundle_fp32, "--headless", *args)
    assert result.code == exit_code and message in result.err, result.err
    assert "Traceback" not in result.err and list(tmp_path.iterdir()) == []


def test_a_missing_bundle_is_known_before_the_camera_is_opened(
    pvc_live: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "open_source", lambda *_, **__: pytest.fail("the camera was opened"))
    result = pvc_live(tmp_path / "none", "--headless", "--json")
    data = json.loads(result.out)
    assert result.code == 6 and data["error"] == "BundleError" and "is not a folder" in data["what"]


def test_a_model_that_must_know_the_length_is_refused_before_the_camera_is_opened(
    pvc_live: Run, bundle_fp32: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp32)
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"time_mode": "absolute"', '"time_mode": "fixed"'))
    result = pvc_live(bundle, "--headless", "--source", "nothing.mp4")
    assert result.code == 6 and "error: this model's time mode is 'fixed'" in result.err


def test_without_a_window_the_message_names_headless(
    pvc_live: Run, bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    result = pvc_live(bundle_fp32, "--source", "synthetic", "--json")
    error = json.loads(result.out)
    assert result.code == 4 and error["error"] == "BackendUnavailable" and "--headless" in error["fix"]


def test_the_demo_imports_no_torch_and_no_exporter() -> None:
    code = "import apps.watch, sys; print(sorted({'torch', 'av', 'cv2', 'pvc_ref', 'pvc_export'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
