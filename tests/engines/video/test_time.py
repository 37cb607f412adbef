"""Time: frames are sampled by timestamp (at a constant rate, the same as by index), on one timeline whatever jumps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engines.errors import MediaError
from engines.preprocess import segment_indices
from engines.video import VideoReader, probe_video, read_video, write_video

av = pytest.importorskip("av")


def grey(index: int) -> np.ndarray:
    return np.full((48, 64, 3), 5 * index, np.uint8)


def shown(bgr: np.ndarray) -> int:
    return round(float(bgr.mean()) / 5)


def sampled(path: Path, num_segments: int, *, fps: float | None = None) -> list[int]:
    """Return which pictures are sampled, identified by their content."""
    info = probe_video(path, fps=fps)
    with VideoReader(path, fps=fps) as reader:
        return [shown(frame.bgr) for frame in reader.shown_at(info.sample_times(num_segments))]


def variable(path: Path, times_s: list[float]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 3000)
        for index, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(grey(index), format="bgr24")
            frame.pts, frame.time_base = round(3000 * time_s), Fraction(1, 3000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


SLOW_THEN_FAST = [*(float(second) for second in range(10)), *(10 + index / 30 for index in range(30))]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("num_segments", [1, 4, 11, 16])
def test_a_variable_rate_is_sampled_evenly_in_time(tmp_path: Path, suffix: str, num_segments: int) -> None:
    """10 s at 1 frame per second, then 1 s at 30: by index, three quarters of the samples are in the last second."""
    path = variable(tmp_path / f"vfr{suffix}", SLOW_THEN_FAST)
    info = probe_video(path)
    assert info.num_frames == 40 and info.span_s == pytest.approx(11, abs=0.1)
    got = sampled(path, num_segments)
    times_s = [(segment + 0.5) * 11 / num_segments for segment in range(num_segments)]  # the middles of equal parts
    on_screen = [np.searchsorted(SLOW_THEN_FAST, time_s, side="right") - 1 for time_s in times_s]
    gaps = [abs(SLOW_THEN_FAST[one] - SLOW_THEN_FAST[other]) for one, other in zip(got, on_screen, strict=True)]
    assert max(gaps) <= 1.0  # half a segment, because InternVL's rule rounds, and a frame that lasts a second
    assert sum(index >= 10 for index in got) <= num_segments / 11 + 1
    by_index = segment_indices(40, num_segments)
    assert num_segments < 4 or sum(index >= 10 for index in by_index) > num_segments / 2  # as sampling by index would


@pytest.mark.parametrize(("suffix", "fps"), [(".mp4", 30000 / 1001), (".mkv", 30000 / 1001), (".ts", 25), (".avi", 25)])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 40])
def test_a_constant_rate_is_sampled_as_by_index(tmp_path: Path, suffix: str, fps: float, num_frames: int) -> None:
    if suffix == ".ts":
        num_frames += 8  # with fewer, FFmpeg does not recognise a transport stream
    path = tmp_path / f"clip{suffix}"
    write_video(path, map(grey, range(num_frames)), fps=fps)
    for num_segments in (1, 3, 8, 16, 40):
        assert sampled(path, num_segments) == segment_indices(num_frames, num_segments), num_segments


def test_samples_of_a_file_that_starts_late_are_counted_from_its_first_frame(tmp_path: Path) -> None:
    path = variable(tmp_path / "late.mkv", [100 + index / 10 for index in range(20)])
    info = probe_video(path)
    assert info.start_s == pytest.approx(100) and info.span_s == pytest.approx(2, abs=0.02)
    assert sampled(path, 5) == segment_indices(20, 5)


@pytest.mark.parametrize("seconds", [3, 40], ids=lambda value: f"{value} s")
def test_recordings_one_after_the_other_are_on_one_timeline(tmp_path: Path, seconds: int) -> None:
    """Transport streams are concatenated like this: the timestamps of the second start again."""
    part = tmp_path / "part.ts"
    write_video(part, (grey(index % 40) for index in range(2 * seconds)), fps=2)
    whole = tmp_path / "whole.ts"
    whole.write_bytes(part.read_bytes() * 2)
    with VideoReader(whole) as reader:
        frames = [(shown(frame.bgr), frame.time_s) for frame in reader.frames()]
        assert reader.damage is None
    assert [index for index, _ in frames] == [index % 40 for index in range(2 * seconds)] * 2
    assert np.diff([time_s for _, time_s in frames]) == pytest.approx(0.5, abs=0.02)
    assert probe_video(whole).span_s == pytest.approx(2 * seconds, abs=0.1)


@pytest.mark.parametrize(("has_end", "num_shown"), [(True, 40 - 16), (False, 40)], ids=["file", "live stream"])
def test_a_clock_that_is_set_back_does_not_stop_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_end: bool, num_shown: int
) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, map(grey, range(40)), fps=10)
    own = VideoReader._time_s
    monkeypatch.setattr(
        VideoReader, "_time_s", lambda self, frame, number, last: own(self, frame, number, last) - 50 * (number >= 10)
    )
    with VideoReader(path) as reader:
        reader.has_end = has_end
        times_s = [frame.time_s for frame in reader.frames()]
    assert len(times_s) == num_shown and times_s == sorted(times_s)


def raw(path: Path, codec: str, layout: str, **options: str) -> Path:
    with av.open(str(path), "w", format={".mjpeg": "mjpeg", ".h264": "h264"}[path.suffix]) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for index in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(index), format="bgr24")))
        container.mux(stream.encode(None))
    return path


def test_a_raw_stream_has_the_rate_that_it_is_given(tmp_path: Path) -> None:
    path = raw(tmp_path / "camera.h264", "libx264", "yuv420p")
    frames = list(read_video(path, fps=5))
    assert [shown(frame.bgr) for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 5 for index in range(20)])
    info = probe_video(path, fps=5)
    assert (info.num_frames, info.fps, info.duration_s) == (20, 5, pytest.approx(4))
    assert sampled(path, 6, fps=5) == segment_indices(20, 6)


def test_a_raw_stream_that_states_its_rate_needs_none(tmp_path: Path) -> None:
    assert probe_video(raw(tmp_path / "camera.h264", "libx264", "yuv420p")).fps == 25


@pytest.mark.parametrize("use", [probe_video, lambda path: list(read_video(path))], ids=["probe", "read"])
def test_a_raw_stream_without_a_rate_asks_for_one(tmp_path: Path, use: object) -> None:
    path = raw(tmp_path / "camera.mjpeg", "mjpeg", "yuvj420p")
    assert callable(use)
    with pytest.raises(MediaError, match=r"camera\.mjpeg states no frame rate") as caught:
        use(path)
    assert "raw" in caught.value.cause and "--fps 25" in caught.value.fix
    assert len(list(read_video(path, fps=25))) == 20


def test_a_rate_for_a_file_with_timestamps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, map(grey, range(3)), fps=10)
    with pytest.raises(MediaError, match="has timestamps, so") as caught:
        probe_video(path, fps=5)
    assert "leave --fps out" in caught.value.fix
