"""Recording for days: playable segments, a quota, an index that points to the right frame, and killed processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import apps.segment_index
from apps.recorder import MAX_FPS
from apps.segment_index import INDEX, MIN_GONE, NAME, OPEN, read_index
from apps.segments import MAX_GAP_S, RETRY_S, ROOM_BYTES, SegmentedRecorder
from engines.errors import BackendUnavailable, MediaError
from engines.video import VideoWriter, probe_video, read_video

from ..fakes import picture
from .fakes import STATUS, captured, event

FPS = 10.0
Open = Callable[..., SegmentedRecorder]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Iterator[Open]:
    made: list[SegmentedRecorder] = []

    def start(**bounds: Any) -> SegmentedRecorder:
        known: dict[str, Any] = {"source_fps": FPS, "trouble": said.append, "segment_s": 1.0} | bounds
        made.append(SegmentedRecorder(tmp_path / "rec", **known))
        return made[-1]

    yield start
    for recorder in made:
        recorder.close()


def see(recorder: SegmentedRecorder, index: int, *, time_s: float | None = None, value: int | None = None) -> None:
    """Do as a session does: the model sees a frame, then the frame is shown."""
    frame = captured(index, value=index % 30 if value is None else value, time_s=time_s)
    recorder.saw(frame, STATUS)
    recorder.add(frame.bgr, frame.time_s)


def shown(path: Path) -> list[int]:
    """Return the `picture` value of each frame."""
    return [round(float(frame.bgr.mean()) / 8) for frame in read_video(path)]


def segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


def index_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def test_segments_are_whole_files_that_together_show_every_frame(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(25):
        see(recorder, index)
    recorder.close()
    assert [shown(path) for path in segments(tmp_path / "rec")] == [[*range(10)], [*range(10, 20)], [*range(20, 25)]]
    assert recorder.num_written == 25 and recorder.is_published and recorder.fps == FPS
    assert recorder.path == tmp_path / "rec"


@pytest.mark.parametrize("num_frames", [1, 2, 9, 10, 11, 12, 13, 21])
def test_a_segment_of_any_length_states_its_length_and_shows_its_last_frame(
    opened: Open, tmp_path: Path, num_frames: int
) -> None:
    recorder = opened(segment_s=100.0)
    for index in range(num_frames):
        see(recorder, index)
    recorder.close()
    (path,) = segments(tmp_path / "rec")
    info = probe_video(path)
    assert shown(path) == [*range(num_frames)] and (info.num_frames, info.start_s) == (num_frames, 0.0)
    assert info.duration_s == pytest.approx(num_frames / FPS)


def test_a_finished_segment_plays_while_the_next_one_is_written(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(12):
        see(recorder, index)
    (path,) = segments(tmp_path / "rec")
    assert probe_video(path).num_frames == 10 and recorder.is_published


def test_no_time_is_lost_where_a_slow_model_s_segment_ends(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(5):
        see(recorder, index, time_s=0.4 * index)
    recorder.close()
    first, second = segments(tmp_path / "rec")
    assert shown(first) == [0] * 4 + [1] * 4 + [2] * 4 and shown(second) == [3] * 4 + [4]


def test_a_frame_shown_again_with_its_answer_replaces_itself(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(3):
        see(recorder, index)
        recorder.add(picture(20 + index), index / 10)
    recorder.close()
    assert shown(segments(tmp_path / "rec")[0]) == [20, 21, 22]


@pytest.mark.parametrize("jump_s", [MAX_GAP_S + 0.1, 10_000.0, -0.2], ids=["a gap", "hours", "back"])
def test_a_gap_and_a_step_back_in_time_begin_a_segment_and_are_not_filled(
    opened: Open, tmp_path: Path, jump_s: float
) -> None:
    recorder = opened(segment_s=100.0)
    for index in range(6):
        see(recorder, index, time_s=index / 10 + (jump_s if index >= 3 else 0.0))
    recorder.close()
    assert [shown(path) for path in segments(tmp_path / "rec")] == [[0, 1, 2], [3, 4, 5]]


def test_a_short_gap_is_filled_with_the_frame_before_it(opened: Open, tmp_path: Path) -> None:
    recorder = opened(segment_s=100.0)
    see(recorder, 1, time_s=0.0)
    see(recorder, 2, time_s=0.5)
    recorder.close()
    assert shown(segments(tmp_path / "rec")[0]) == [1] * 5 + [2]


def test_the_index_says_what_each_segment_holds(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(100, 115):
        see(recorder, index)
    recorder.close()
    first, second = index_of(tmp_path / "rec")
    files = segments(tmp_path / "rec")
    assert [first["file"], second["file"]] == [path.name for path in files]
    assert [first["bytes"], second["bytes"]] == [path.stat().st_size for path in files]
    assert (first["first_frame"], first["last_frame"], first["num_frames"], first["fps"]) == (100, 109, 10, FPS)
    assert (second["first_frame"], second["last_frame"]) == (110, 114)
    assert (first["first_time_s"], second["first_time_s"], second["last_time_s"]) == (10.0, 11.0, 11.4)
    assert first["first_at"] <= first["last_at"] <= second["first_at"] and first["first_at"][:4] == first["file"][:4]


@pytest.mark.parametrize("is_early", [True, False], ids=["before its frame is added", "after that"])
def test_an_event_is_found_in_the_file_by_its_offset(opened: Open, tmp_path: Path, is_early: bool) -> None:
    """Checked by pixels. Includes the event of a segment's first frame, which comes before the segment is open."""
    recorder, marked = opened(), (3, 10, 19, 24)
    for index in range(26):
        frame = captured(index, value=index)
        recorder.saw(frame, STATUS)
        if not is_early:
            recorder.add(frame.bgr, frame.time_s)
        if index in marked:
            recorder.happened(event(f"saw {index}", frame=index, alert="fire"), frame)
        if is_early:
            recorder.add(frame.bgr, frame.time_s)
    recorder.close()
    found = []
    for entry in read_index(tmp_path / "rec"):
        pictures = shown(tmp_path / "rec" / entry["file"])
        for known in entry["events"]:
            assert known["text"] == f"saw {known['frame']}" and known["alert"] == "fire"
            assert pictures[round(known["offset_s"] * FPS)] == known["frame"]
            found.append(known["frame"])
    assert found == list(marked)


def test_the_offset_of_an_event_is_that_of_the_slot_that_shows_its_frame(opened: Open, tmp_path: Path) -> None:
    recorder = opened(segment_s=100.0)
    for index, time_s in enumerate([7.0, 7.33, 7.68]):
        see(recorder, index, time_s=time_s)
        recorder.happened(event(frame=index, time_s=time_s), captured(index))
    recorder.close()
    (entry,) = index_of(tmp_path / "rec")
    offsets = [known["offset_s"] for known in entry["events"]]
    assert offsets == [0.0, 0.3, 0.7]
    assert [shown(tmp_path / "rec" / entry["file"])[round(offset * FPS)] for offset in offsets] == [0, 1, 2]


def test_a_segment_ends_at_its_size(opened: Open, tmp_path: Path) -> None:
    recorder = opened(segment_s=1e6, max_segment_bytes=3000)
    for index in range(300):
        see(recorder, index)
    recorder.close()
    sizes = [path.stat().st_size for path in segments(tmp_path / "rec")]
    assert len(sizes) >= 3 and max(sizes) < 12_000
    assert sum(entry["num_frames"] for entry in read_index(tmp_path / "rec")) == 300


def test_under_a_quota_the_oldest_segments_are_removed_and_the_index_knows(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(31):
        see(recorder, index)
    recorder.close()
    total = sum(path.stat().st_size for path in segments(tmp_path / "rec"))
    before = segments(tmp_path / "rec")
    (tmp_path / "rec" / "mine.mp4").write_bytes(b"x" * total)
    recorder = opened(quota_bytes=2 * total)
    for index in range(200):
        see(recorder, index)
        assert sum(path.stat().st_size for path in segments(tmp_path / "rec")) <= 2 * total
    recorder.close()
    after = segments(tmp_path / "rec")
    assert sum(path.stat().st_size for path in after) > total  # and no more segments were removed than necessary
    assert not set(before) & set(after) and (tmp_path / "rec" / "mine.mp4").exists()
    assert [entry["file"] for entry in read_index(tmp_path / "rec")] == [path.name for path in after]
    frames = [(entry["first_frame"], entry["last_frame"]) for entry in read_index(tmp_path / "rec")]
    assert frames[-1] == (190, 199) and all(last + 1 == first for (_, last), (first, _) in pairwise(frames))


def test_the_open_segment_counts_for_the_quota(opened: Open, tmp_path: Path) -> None:
    recorder = opened()
    for index in range(50):
        see(recorder, index)
    recorder.close()
    before = segments(tmp_path / "rec")
    total = sum(path.stat().st_size for path in before)
    recorder = opened(segment_s=1e6, quota_bytes=total + 1000)
    index = 0
    while (after := segments(tmp_path / "rec")) == before:
        see(recorder, index)
        index += 1
    assert after == before[1:]  # and the open segment is not finished


def test_the_index_does_not_grow_with_what_was_removed(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps.segment_index, "MIN_GONE", 3)
    assert MIN_GONE > 3
    recorder = opened(quota_bytes=6000)
    for index in range(120):
        see(recorder, index)
    recorder.close()
    num_left = len(segments(tmp_path / "rec"))
    assert 0 < num_left < 6 and len(index_of(tmp_path / "rec")) <= num_left + max(num_left, 3) + 1


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


def test_a_kill_before_a_second_was_written_leaves_nothing_and_that_is_said(
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


def test_on_a_disk_full_of_other_things_recording_stops_and_goes_on_when_there_is_room(
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
