"""A killed session, and one that resumes from the state it saved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.segment_index import read_index
from engines import PVCStream, open_bundle, open_stream
from engines.synthetic import render_clip
from engines.video import probe_video, read_video, write_video

from .conftest import Run

ROOT = Path(__file__).parent.parent.parent
NUM_FRAMES, FPS, MORE = 1500, 30.0, 25


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 frames, repeated, so that the clip is longer than any session here."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = list(render_clip(300, seed=5, width=64, height=48))
    write_video(path, frames * (NUM_FRAMES // 300), fps=FPS)
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest_frame(log: Path) -> int:
    """Frame number of the last whole line."""
    return int(json.loads(log.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2])["frame"])


def kill_after_a_save(arguments: list[object], state: Path, log: Path) -> None:
    """Run pvc-live, and kill it after it has saved its stream and then logged more events, three seconds of clip in:
    by then a recording has something to keep."""
    command = [sys.executable, "-m", "apps.watch", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        until, num_lines = time.monotonic() + 120, 0
        while not (state.exists() and log.read_bytes().count(b"\n") > num_lines + 3 and newest_frame(log) > 3 * FPS):
            if not state.exists() and log.exists():
                num_lines = log.read_bytes().count(b"\n")
            assert process.poll() is None and time.monotonic() < until, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def test_a_session_that_was_killed_continues_with_what_it_had_saved(
    pvc_live: Run, bundle_fp32: Path, clip: Path, tmp_path: Path
) -> None:
    state, log, folder = tmp_path / "state.npz", tmp_path / "log.jsonl", tmp_path / "rec"
    arguments: list[object] = [bundle_fp32, "--source", clip, "--every-frame", "--headless", "--state", state,
                               "--save-every", 1, "--log", log, "--record-folder", folder, "--segment", 2,
                               "--ask-every", 0.5, "--max-new-tokens", 4]  # fmt: skip
    kill_after_a_save(arguments, state, log)
    before = lines_of(log)
    assert log.read_bytes().endswith(b"\n") and before and "end" not in {line["kind"] for line in before}
    assert before[-1]["frame"] < NUM_FRAMES - 1

    twin = open_stream(shutil.copy(state, tmp_path / "copy.npz"), open_bundle(bundle_fp32))
    num_saved = twin.num_frames
    assert 0 < num_saved < before[-1]["frame"]  # the log continues past the save
    result = pvc_live(*arguments, "--resume", "--frames", MORE, "--json")
    assert result.code == 0, result.err
    assert f"resumed {state}: {num_saved} frames, saved " in result.err
    assert " s ago; anything later is lost" in result.err

    # The stream answers as it would have without the kill.
    assert open_stream(state, open_bundle(bundle_fp32)).num_frames == num_saved + MORE
    for clip_frame, _ in zip(read_video(clip), range(MORE), strict=False):
        twin.push(clip_frame.bgr)
    assert json.loads(result.out)["last_answer"]["text"] == twin.ask("What happens?", max_new_tokens=4).text

    # The log has whole lines of both sessions.
    after = lines_of(log)
    assert after[: len(before)] == before and after[-1]["kind"] == "end" and len(after) > len(before) + 1

    # In the recording every file plays and is in the index.
    entries, files = list(read_index(folder)), sorted(folder.glob("*Z.mp4"))
    assert [entry["file"] for entry in entries] == [path.name for path in files] and len(files) >= 2
    assert [probe_video(path).num_frames for path in files] == [entry["num_frames"] for entry in entries]
    assert [len(list(read_video(path))) for path in files] == [entry["num_frames"] for entry in entries]
    assert entries[-1]["num_frames"] == MORE and not entries[-1].get("cut_short")
    assert {path.name for path in folder.iterdir()} == {*(path.name for path in files), "index.jsonl", ".lock"}


@pytest.mark.parametrize("has_file", [False, True])
def test_without_a_saved_stream_a_new_one_begins_and_that_is_reported(
    pvc_live: Run, bundle_fp32: Path, clip: Path, tmp_path: Path, *, has_file: bool
) -> None:
    """The same as without --resume, even if a saved stream exists."""
    state = tmp_path / "state.npz"
    if has_file:
        PVCStream(open_bundle(bundle_fp32)).save(state)
    resume = [] if has_file else ["--resume"]
    result = pvc_live(
        bundle_fp32, "--source", clip, "--every-frame", "--headless", "--state", state, "--frames", 3, *resume
    )
    assert result.code == 0 and (f"{state} does not exist yet: starting a new stream." in result.out) != has_file
    assert open_stream(state, open_bundle(bundle_fp32)).num_frames == 3
    assert list(tmp_path.iterdir()) == [state]


def make_cut(path: Path, bundle: Path) -> None:
    PVCStream(open_bundle(bundle)).save(path)
    path.write_bytes(path.read_bytes()[:-100])


def make_another(path: Path, bundle: Path) -> None:
    opened = open_bundle(bundle)
    manifest = opened.manifest
    other = replace(manifest, limits=replace(manifest.limits, streams=1))
    PVCStream(replace(opened, manifest=other)).save(path)


@pytest.mark.parametrize(
    ("make", "what", "fix"),
    [
        (make_cut, "cannot be read as a saved stream", "or start a new stream"),
        (make_another, "was saved with another bundle than", "open it with the bundle that was at"),
    ],
    ids=["cut short", "another bundle"],
)
def test_a_saved_stream_that_cannot_continue_is_refused_and_left_alone(
    pvc_live: Run, bundle_fp32: Path, clip: Path, tmp_path: Path, make: Any, what: str, fix: str
) -> None:
    state = tmp_path / "state.npz"
    make(state, bundle_fp32)
    before = state.read_bytes()
    result = pvc_live(
        bundle_fp32, "--source", clip, "--headless", "--state", state, "--resume", "--frames", 1,
        "--record-folder", tmp_path / "rec",
    )  # fmt: skip
    assert result.code == 6 and f"error: {state} {what}" in result.err and fix in result.err
    assert "Traceback" not in result.err and state.read_bytes() == before
    assert list((tmp_path / "rec").glob("*.mp4")) == []


@pytest.mark.parametrize("name", ["", "none/state.npz"], ids=["a folder", "in no folder"])
def test_a_place_where_nothing_can_be_saved_is_known_before_the_first_frame(
    pvc_live: Run, bundle_fp32: Path, clip: Path, tmp_path: Path, name: str
) -> None:
    result = pvc_live(bundle_fp32, "--source", clip, "--headless", "--state", tmp_path / name, "--frames", 1)
    assert result.code == 4 and "--state" in result.err and "0 frames" not in result.out
