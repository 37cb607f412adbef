"""Recording for days: playable segments, a quota, an index that points to the right frame, and killed processes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import apps.segment_index
from apps.segment_index import INDEX, MIN_GONE, NAME, read_index
from apps.segments import MAX_GAP_S, SegmentedRecorder
from engines.video import probe_video, read_video

from ..fakes import picture
from .conftest import FPS, Open
from .fakes import STATUS, captured, event


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
