"""Recorded segments after a kill, on a full disk and on one that fails."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from apps.recorder import MAX_FPS
from apps.segment_index import INDEX, OPEN, read_index
from apps.segments import RETRY_S, ROOM_BYTES, SegmentedRecorder
from engines.errors import BackendUnavailable, MediaError
from engines.video import VideoWriter

from .conftest import FPS, Open
from .fakes import captured, event
from .test_segments import index_of, see, segments, shown


def killed(folder: Path, *, num_frames: int) -> None:
    """Record this many frames in a process, with an event at frames 3, 13, 23, ..., and kill it."""
    program = """
import sys, time
from pathlib import Path
from tests.apps.events.fakes import STATUS, captured, event
from apps.segments import SegmentedRecorder
recorder = SegmentedRecorder(Path(sys.argv[1]), source_fps=10.0, trouble=print, segment_s=6.0)
for index in range(int(sys.argv[2])):
    frame = captured(index, value=index % 30)
    recorder.saw(frame, STATUS)
    if index % 10 == 3:
        recorder.happened(event(f"saw {index}", frame=index), frame)
    recorder.add(frame.bgr, frame.time_s)
print("written", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program, folder, str(num_frames)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)


def test_a_kill_leaves_what_is_finished_and_the_open_segment_is_completed_at_the_next_start(
    opened: Open, tmp_path: Path, said: list[str]
) -> None:
    folder = tmp_path / "rec"
    killed(folder, num_frames=110)
    assert len(segments(folder)) == len(index_of(folder)) == 1 and (folder / OPEN).exists()
    opened().close()
    first, second = segments(folder)
    assert shown(first) == [index % 30 for index in range(60)]
    left = shown(second)
    assert left == [index % 30 for index in range(60, 60 + len(left))] and len(left) >= 15  # the encoder held the rest
    assert said == [f"{second} was left open by an earlier session and was completed"]
    entries = list(read_index(folder))
    assert [entry["file"] for entry in entries] == [first.name, second.name]
    assert entries[1]["cut_short"] and (entries[1]["first_frame"], entries[1]["num_frames"]) == (60, len(left))
    assert [known["frame"] for known in entries[1]["events"]] == [63, 73, 83, 93, 103]
    assert left[round(entries[1]["events"][0]["offset_s"] * FPS)] == 63 % 30
    assert sorted(path.name for path in folder.iterdir()) == sorted([".lock", INDEX, first.name, second.name])


def test_a_kill_before_a_second_was_written_leaves_nothing_and_that_is_reported(
    opened: Open, tmp_path: Path, said: list[str]
) -> None:
    killed(tmp_path / "rec", num_frames=2)
    opened().close()
    assert segments(tmp_path / "rec") == [] and index_of(tmp_path / "rec") == []
    assert len(said) == 1 and said[0].endswith("without any frame and was removed")


def test_a_kill_between_a_segment_s_name_and_its_line_is_made_good(opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    recorder = opened()
    for index in range(15):
        see(recorder, index)
    recorder.close()
    lines = (folder / INDEX).read_bytes().splitlines(keepends=True)
    (folder / INDEX).write_bytes(lines[0] + lines[1][:40])
    opened().close()
    entries = index_of(folder)
    assert [entry["file"] for entry in entries] == [path.name for path in segments(folder)]
    assert entries[0] == json.loads(lines[0]) and entries[1]["num_frames"] == 5


def test_a_line_whose_file_is_gone_is_dropped_at_the_next_start(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(15):
        see(recorder, index)
    recorder.close()
    segments(tmp_path / "rec")[0].unlink()
    opened().close()
    assert [entry["first_frame"] for entry in index_of(tmp_path / "rec")] == [10]


def test_a_second_session_may_not_record_to_the_same_folder(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    see(recorder, 0)
    with pytest.raises(BackendUnavailable, match="another session is recording to"):
        SegmentedRecorder(tmp_path / "rec", source_fps=FPS, trouble=pytest.fail)
    recorder.close()
    assert len(segments(tmp_path / "rec")) == 1
    opened().close()


def test_on_a_full_disk_older_segments_make_room_first(
    opened: Open, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, folder = opened(), tmp_path / "rec"
    for index in range(25):
        see(recorder, index)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9 if len(segments(folder)) < 2 else ROOM_BYTES - 1)
    )
    for index in range(25, 28):
        see(recorder, index)
    recorder.close()
    assert [entry["first_frame"] for entry in read_index(folder)] == [10, 20] and said == []


def test_on_a_disk_full_of_other_things_recording_stops_and_continues_when_there_is_room(
    opened: Open, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, folder, free = opened(segment_s=1e6), tmp_path / "rec", [10**12]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    for index in range(5):
        see(recorder, index)
    free[0] = 10**8  # 95 MiB: enough to complete a file
    for index in range(5, 700):
        see(recorder, index)
        recorder.happened(event(frame=index), captured(index))
    assert len(said) == 1 and f"recording to {folder} stopped: only 95 MiB are free" in said[0]
    assert [shown(path) for path in segments(folder)] == [[0, 1, 2, 3, 4]]
    assert recorder._early == [] or len(recorder._early) == 1
    free[0] = 10**12
    first = int(RETRY_S * FPS) * 2 + 10
    for index in range(first, first + 5):
        see(recorder, index)
    recorder.close()
    assert said[1:] == [f"recording to {folder} has resumed"]
    assert [(entry["first_frame"], entry["num_frames"]) for entry in index_of(folder)] == [(0, 5), (first, 5)]


def test_a_disk_that_fails_in_the_middle_stops_the_recording_and_not_the_session(
    opened: Open, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, folder = opened(), tmp_path / "rec"
    for index in range(15):
        see(recorder, index)

    def fails(self: VideoWriter, *_: object) -> None:
        raise MediaError("it cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", fails)
        for index in range(15, 30):
            see(recorder, index)
    assert said == [
        f"recording to {folder} stopped: it cannot be written: No space left on device; the open segment is lost; "
        "retrying every 60 s"
    ]
    assert [entry["first_frame"] for entry in read_index(folder)] == [0]
    assert not [path for path in folder.iterdir() if path.name.startswith(".2")] and not (folder / OPEN).exists()


def test_an_aborted_recording_keeps_what_is_finished(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(15):
        see(recorder, index)
    recorder.abort()
    recorder.close()
    assert [entry["num_frames"] for entry in read_index(tmp_path / "rec")] == [10]
    assert len(segments(tmp_path / "rec")) == 1


def test_without_a_frame_there_is_no_segment(opened: Open, tmp_path: Path) -> None:
    recorder = opened(source_fps=None)
    recorder.close()
    recorder.close()
    assert segments(tmp_path / "rec") == [] and not recorder.is_published
    assert opened(source_fps=500.0).fps == MAX_FPS


def test_a_place_that_is_no_folder_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "rec").write_bytes(b"")
    with pytest.raises(BackendUnavailable, match="rec cannot be created"):
        SegmentedRecorder(tmp_path / "rec", source_fps=FPS, trouble=pytest.fail)
