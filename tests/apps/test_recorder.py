"""Recordings: true speed, any size, complete or absent. Also the writer they use."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apps.recorder import FALLBACK_FPS, MAX_FPS, Recorder
from engines.errors import BackendUnavailable, MediaError
from engines.video import VideoWriter, probe_video, read_video

from .fakes import picture


def shown(path: Path) -> list[int]:
    """Return the `picture` value of each frame of a recording."""
    return [round(float(frame.bgr.mean()) / 8) for frame in read_video(path)]


def record(path: Path, times_s: list[float], *, fps: float) -> Recorder:
    recorder = Recorder(path, source_fps=fps)
    for index, time_s in enumerate(times_s):
        recorder.add(picture(2 * index), time_s)
    recorder.close()
    return recorder


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([0.0, 0.1, 0.2, 0.3], [0, 2, 4, 6]),
        ([5.0, 5.1, 5.4, 5.5], [0, 2, 2, 2, 4, 6]),
        ([0.0, 0.02, 0.04, 0.1], [4, 6]),
        ([0.0, 0.11, 0.19, 0.28], [0, 2, 4, 6]),
        ([3.0], [0]),
    ],
    ids=["each in its slot", "a pause is filled", "too many in one slot", "jitter", "one frame"],
)
def test_a_recording_plays_at_the_true_speed(tmp_path: Path, times_s: list[float], expected: list[int]) -> None:
    path = tmp_path / "live.mp4"
    recorder = record(path, times_s, fps=10.0)
    assert shown(path) == expected and recorder.num_written == len(expected)
    info = probe_video(path)
    assert info.fps == pytest.approx(10.0) and info.duration_s == pytest.approx(
        times_s[-1] - times_s[0] + 0.1, abs=0.05
    )


def test_every_frame_of_a_file_has_a_slot_of_its_own(tmp_path: Path) -> None:
    fps = 30000 / 1001
    recorder = record(tmp_path / "live.mp4", [index / fps for index in range(14)], fps=fps)
    assert shown(recorder.path) == [2 * index for index in range(14)]
    assert probe_video(recorder.path).fps == pytest.approx(fps)


def test_the_last_frame_can_still_be_replaced(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "live.mp4", source_fps=10.0)
    recorder.add(picture(1), 0.0)
    recorder.add(picture(2), 0.1)
    recorder.add(picture(20), 0.1)  # the same frame with its answer
    recorder.close()
    assert shown(recorder.path) == [1, 20]


@pytest.mark.parametrize(("source_fps", "fps"), [(None, FALLBACK_FPS), (240.0, MAX_FPS), (12.5, 12.5)])
def test_the_rate_is_the_source_s_if_that_is_one(tmp_path: Path, source_fps: float | None, fps: float) -> None:
    recorder = Recorder(tmp_path / "live.mp4", source_fps=source_fps)
    assert recorder.fps == fps
    recorder.abort()


def test_an_odd_size_is_padded_and_another_size_is_scaled(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "live.mp4", source_fps=10.0)
    recorder.add(picture(3, height=47, width=63), 0.0)
    recorder.add(picture(9, height=100, width=200), 0.1)
    recorder.close()
    info = probe_video(recorder.path)
    assert (info.width, info.height) == (64, 48) and shown(recorder.path) == [3, 9]


def test_the_name_does_not_exist_before_the_end_and_an_older_file_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "live.mp4"
    path.write_bytes(b"the old file")
    recorder = Recorder(path, source_fps=10.0)
    for index in range(60):
        recorder.add(picture(index % 30), index / 10)
    assert path.read_bytes() == b"the old file" and not recorder.is_published
    recorder.close()
    assert recorder.is_published and len(shown(path)) == 60 and list(tmp_path.iterdir()) == [path]


def test_without_a_frame_there_is_no_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "live.mp4", source_fps=None)
    recorder.close()
    assert not recorder.is_published and list(tmp_path.iterdir()) == []


def test_an_aborted_recording_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "live.mp4", source_fps=None)
    recorder.add(picture(1), 0.0)
    recorder.add(picture(2), 5.0)
    recorder.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("live", "does not end in a video suffix", "/live.mp4"),
        ("live.txt", "does not end in a video suffix", "/live.mp4"),
        ("folder.mp4", "is a folder", "folder.mp4/live.mp4"),
        ("missing/live.mp4", "cannot be written", "ls -ld "),
    ],
)
def test_a_place_that_cannot_be_recorded_to_is_refused_before_the_first_frame(
    tmp_path: Path, name: str, what: str, fix: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError) as caught:
        Recorder(tmp_path / name, source_fps=None)
    assert what in caught.value.what and fix in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_a_nearly_full_disk_ends_a_recording_while_it_can_still_be_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10**12] * 4 + [10**6])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(free)))
    recorder = Recorder(tmp_path / "live.mp4", source_fps=10.0)
    with pytest.raises(BackendUnavailable, match="only 1 MiB are free") as caught:
        for index in range(9):
            recorder.add(picture(index), index / 10)
    assert "df -h" in caught.value.fix
    recorder.close()
    assert shown(recorder.path) == [0, 1, 2]


def test_a_writer_in_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="unplugged"), VideoWriter(tmp_path / "a.mp4", fps=10) as writer:
        for _ in range(100):
            writer.write(picture(1))
        raise KeyError("unplugged")
    assert list(tmp_path.iterdir()) == []


def test_closing_a_writer_publishes_once_and_aborting_it_afterwards_does_nothing(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mkv", fps=10, preset="veryfast")
    writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.close()
    writer.abort()
    assert probe_video(tmp_path / "a.mkv").num_frames == 1
