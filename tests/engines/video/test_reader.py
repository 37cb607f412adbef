"""Video files: what is written is read back, frames are found by index, and every damaged file is explained."""

from __future__ import annotations

import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from engines.errors import BackendUnavailable, FrameError, MediaError
from engines.preprocess import segment_indices
from engines.video import VideoInfo, probe_video, read_video, write_video

av = pytest.importorskip("av")

WIDTH, HEIGHT, NUM_FRAMES = 64, 48, 12
BLUE, GREEN, RED = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(frame_index: int) -> np.ndarray:
    """Grey 20 * frame_index, so that a frame's mean identifies it, with a blue top left corner."""
    frame = np.full((HEIGHT, WIDTH, 3), 20 * frame_index, np.uint8)
    frame[:16, :16] = BLUE
    return frame


def shown_index(bgr: np.ndarray) -> int:
    """Return the frame_index of a `picture`, from its centre."""
    return round(float(bgr[20:28, 28:36].mean()) / 20)


def encode(path: Path, *, num_frames: int = NUM_FRAMES, rotation: int = 0, container_options=None) -> Path:
    """Write a video with PyAV alone, for what write_video cannot do."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame_index in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(frame_index), format="bgr24")))
        if num_frames:
            container.mux(stream.encode(None))
        else:
            container.start_encoding()
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    write_video(path, map(picture, range(NUM_FRAMES)), fps=25)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".ts"])
def test_written_frames_are_read_back_in_order(tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    write_video(path, map(picture, range(NUM_FRAMES)), fps=25)
    frames = list(read_video(path))
    assert [frame.frame_index for frame in frames] == list(range(NUM_FRAMES))
    for frame in frames:
        assert frame.bgr.shape == (HEIGHT, WIDTH, 3) and frame.bgr.dtype == np.uint8
        difference = np.abs(frame.bgr.astype(int) - picture(frame.frame_index))
        difference[14:18, :18] = difference[:18, 14:18] = 0  # the corner's edge, where chroma is interpolated
        # Measured with PyAV 18.1.0: mean 0.3, worst 8, next to the corner, from the encoder.
        assert difference.mean() < 1 and difference.max() < 12
    assert tuple(frames[0].bgr[4, 4] > 128) == (True, False, False)  # blue stays blue: BGR, not RGB


def test_mpeg4_stands_in_where_libx264_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    path = tmp_path / "video.mp4"
    write_video(path, map(picture, range(NUM_FRAMES)), fps=25)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert [shown_index(frame.bgr) for frame in read_video(path)] == list(range(NUM_FRAMES))


def test_probe_reports_size_count_rate_and_duration(video):
    info = probe_video(video)
    assert info == VideoInfo(
        path=video, width=WIDTH, height=HEIGHT, num_frames=NUM_FRAMES, fps=25.0, duration_s=info.duration_s
    )
    assert info.duration_s == pytest.approx(NUM_FRAMES / 25, abs=1e-3)


@pytest.mark.parametrize("fps", [30000 / 1001, 29.97, 12.5, 1.0, 0.5, 120.0, 7.3], ids=str)
def test_odd_frame_rates_and_their_timestamps_survive(tmp_path, fps):
    path = tmp_path / "video.mp4"
    write_video(path, map(picture, range(NUM_FRAMES)), fps=fps)
    info = probe_video(path)
    assert info.fps == pytest.approx(fps, rel=1e-6)
    assert info.duration_s == pytest.approx(NUM_FRAMES / fps, rel=1e-3)
    times_s = [frame.time_s for frame in read_video(path)]
    assert times_s == pytest.approx([frame_index / fps for frame_index in range(NUM_FRAMES)], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_frames_are_counted_where_the_header_has_no_count(tmp_path, suffix):
    path = encode(tmp_path / f"video{suffix}")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert probe_video(path).num_frames == NUM_FRAMES


def test_frames_hidden_by_an_edit_list_are_neither_counted_nor_read(tmp_path, video):
    path = tmp_path / "trimmed.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(video)) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                shift = 3 * packet.duration
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == NUM_FRAMES  # the header still counts them
    assert probe_video(path).num_frames == NUM_FRAMES - 3
    assert [shown_index(frame.bgr) for frame in read_video(path)] == list(range(3, NUM_FRAMES))


@pytest.mark.parametrize("indices", [[0], [11], [2, 5, 9], [3, 3, 3], [0, 0, 4, 11, 11], []], ids=str)
def test_frames_are_read_by_index_and_repeated_as_often_as_asked(video, indices):
    frames = list(read_video(video, indices=indices))
    assert [frame.frame_index for frame in frames] == indices
    assert [shown_index(frame.bgr) for frame in frames] == indices
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in indices])


def test_a_repeated_frame_does_not_share_memory(video):
    first, second = read_video(video, indices=[4, 4])
    first.bgr[:] = 0
    assert shown_index(second.bgr) == 4


@pytest.mark.parametrize(
    ("num_segments", "expected"),
    [
        # 12 frames, end = 11. seg = 2.75, half 1.375; round(0, 2.75, 5.5, 8.25) = 0, 3, 6, 8.
        (4, [1, 4, 7, 9]),
        (1, [5]),  # int(5.5)
        # seg = 0.5, half 0.25; round(0, .5, 1, 1.5, ...) to even: 0 0 1 2 2 2 3 4 4 4 5 6 6 6 7 8 8 8 9 10 10 10.
        (22, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8, 9, 10, 10, 10]),
    ],
)
def test_sampling_takes_the_middle_of_each_segment(video, num_segments, expected):
    frames = list(read_video(video, indices=segment_indices(probe_video(video).num_frames, num_segments)))
    assert [frame.frame_index for frame in frames] == expected
    assert [shown_index(frame.bgr) for frame in frames] == expected


@pytest.mark.parametrize(
    ("rotation", "blue_corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))], ids=str
)
def test_rotation_metadata_is_applied_counter_clockwise(tmp_path, rotation, blue_corner):
    path = encode(tmp_path / "phone.mp4", rotation=rotation)
    shape = (HEIGHT, WIDTH) if rotation in (0, 180) else (WIDTH, HEIGHT)
    info = probe_video(path)
    assert (info.height, info.width) == shape
    for frame in read_video(path):
        assert frame.bgr.shape == (*shape, 3) and frame.bgr.flags.c_contiguous
    last = frame.bgr.astype(int)  # light grey 220, so only the painted corner is much bluer than it is red
    row, column = (slice(2, 10) if side == 0 else slice(-10, -2) for side in blue_corner)
    assert (last[row, column, 0] - last[row, column, 2]).min() > 150
    assert (np.abs(last[..., 0] - last[..., 2]) > 150).mean() == pytest.approx(16 * 16 / (WIDTH * HEIGHT), rel=0.2)


def test_a_colon_in_the_name_is_not_taken_for_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative: an absolute path starts with a slash, so it cannot look like a protocol
    write_video("cam:10:30.mp4", [picture(3)], fps=25)
    assert [shown_index(frame.bgr) for frame in read_video("cam:10:30.mp4")] == [3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["cam:10:30.mp4"]


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_text(path: Path) -> None:
    path.write_text("frame by frame\n" * 50)


def damage_cut_before_index(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_cut_after_index(path: Path) -> None:
    # faststart puts the index first, so the file opens; but no frame this small is left complete in its first half.
    encode(path, container_options={"movflags": "faststart"})
    damage_cut_before_index(path)


def damage_no_video_stream(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(struct.pack("<800h", *range(800)))


def damage_no_frames(path: Path) -> None:
    path.write_bytes(encode(path.with_suffix(".avi"), num_frames=0).read_bytes())


def damage_zeroed_frames(path: Path) -> None:
    data = path.read_bytes()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])


def damage_unknown_codec(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"mp4v", b"zzzz"))


@pytest.mark.parametrize(
    ("damage", "happened", "next_command"),
    [
        (damage_missing, "does not exist", "ls "),
        (damage_directory, "is not a file", "ls "),
        (damage_empty, "is empty \\(0 bytes\\)", "ls -l "),
        (damage_text, "cannot be read as a video", "ffprobe "),
        (damage_cut_before_index, "cannot be read as a video", "ffprobe "),
        (damage_cut_after_index, "contains no frame", "ffprobe "),
        (damage_no_video_stream, "has no video stream", "ffprobe "),
        (damage_no_frames, "contains no frame", "ffprobe "),
        (damage_zeroed_frames, "cannot be read as a video", "ffprobe "),
        (damage_unknown_codec, "cannot decode", "ffmpeg -i "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.parametrize(
    "use",
    [probe_video, lambda path: list(read_video(path)), lambda path: list(read_video(path, indices=[0, 1]))],
    ids=["probe", "read", "sample"],
)
def test_a_file_that_is_no_whole_video_is_explained(video, damage, happened, next_command, use):
    damage(video)
    with pytest.raises(MediaError, match=happened) as caught:
        use(video)
    error = caught.value
    assert str(video) in error.what and error.expected and error.cause and next_command in error.fix
    assert ("truncated" in error.cause) or "cut" not in damage.__name__


def test_a_text_file_is_not_drawn_as_a_terminal(tmp_path):
    path = tmp_path / "captions.txt"
    damage_text(path)
    with pytest.raises(MediaError, match="no video stream") as caught:
        probe_video(path)
    assert "text" in caught.value.cause


def test_an_index_past_the_end_is_refused_after_the_frames_before_it(video):
    frames = read_video(video, indices=[11, 12])
    assert next(frames).frame_index == 11
    with pytest.raises(MediaError, match=r"has no frame 12: .* ends after 12 frames \(0 to 11\)"):
        next(frames)


@pytest.mark.parametrize("indices", [[3, 2], [-1], [0, 5, 4]], ids=str)
def test_indices_that_cannot_be_read_forwards_are_refused_at_once(video, indices):
    with pytest.raises(MediaError, match="that never decrease"):
        read_video(video, indices=indices)


@pytest.mark.parametrize("use", [probe_video, read_video, lambda path: write_video(path, [picture(0)], fps=25)])
def test_without_pyav_the_message_says_how_to_install_it(video, monkeypatch, use):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailable, match="package av") as caught:
        use(video)
    assert caught.value.fix == "pip install -e '.[apps]'"


def test_reading_can_stop_early_and_the_file_can_then_be_deleted(video):
    frames = read_video(video)
    assert next(frames).frame_index == 0
    frames.close()
    video.unlink()
    assert not video.exists()


@pytest.mark.parametrize("shape", [(48, 63, 3), (47, 64, 3)], ids=str)
def test_odd_sizes_are_refused_rather_than_cropped_and_the_advice_works(tmp_path, shape):
    path = tmp_path / "odd.mp4"
    frame = np.zeros(shape, np.uint8)
    height, width, _ = shape
    with pytest.raises(FrameError) as caught:
        write_video(path, [frame], fps=25)
    assert "even width and height" in caught.value.expected and "numpy.pad" in caught.value.fix
    assert list(tmp_path.iterdir()) == []
    write_video(path, [np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")], fps=25)
    assert (probe_video(path).height, probe_video(path).width) == (48, 64)


def failing_source():
    for _ in range(100):  # more than the encoder buffers, so that part of the file is on disk
        yield picture(0)
    raise KeyError("camera unplugged")


@pytest.mark.parametrize(
    ("frames", "fps", "error", "message"),
    [
        (lambda: [], 25, MediaError, "no frame was written"),
        (lambda: [picture(0)], 0, MediaError, "at 0 frames per second"),
        (lambda: [picture(0)], float("nan"), MediaError, "at nan frames per second"),
        (lambda: [picture(0), picture(0)[:32]], 25, FrameError, "is 64x32, but the first was 64x48"),
        (lambda: [picture(0).astype(np.float32)], 25, FrameError, "frame is float32"),
        (failing_source, 25, KeyError, "camera unplugged"),
    ],
    ids=["no frames", "zero fps", "nan fps", "two sizes", "float frame", "source fails"],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, frames, fps, error, message):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"the old file")
    with pytest.raises(error, match=message):
        write_video(path, frames(), fps=fps)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing_folder/video.mp4", "video.nonsense", "folder.mp4"])
def test_a_place_that_cannot_be_written_is_explained(tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match="cannot be written") as caught:
        write_video(tmp_path / name, [picture(0)], fps=25)
    assert "ls -ld" in caught.value.fix
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.mp4"]


def test_the_target_name_does_not_exist_until_the_video_is_complete(tmp_path):
    path = tmp_path / "video.mp4"
    seen = []

    def source():
        for frame_index in range(NUM_FRAMES):
            seen.append(path.exists())
            yield picture(frame_index)

    write_video(path, source(), fps=25)
    assert seen == [False] * NUM_FRAMES and list(tmp_path.iterdir()) == [path]


def test_a_recording_cut_before_its_key_frame_is_counted_by_what_it_shows(tmp_path):
    """A dashcam's segment: its first packets refer to a key frame in the previous segment."""
    whole = tmp_path / "whole.ts"
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(600)]  # more than one group of pictures
    write_video(whole, frames, fps=25.0)
    cut = tmp_path / "cut.ts"
    data = whole.read_bytes()
    start = len(data) // 5 // 188 * 188  # transport streams are packets of 188 bytes
    cut.write_bytes(data[:564] + data[start:])
    info = probe_video(cut)
    shown = list(read_video(cut))
    assert info.num_frames == len(shown) < 600 * 4 // 5
    indices = segment_indices(info.num_frames, 6)
    assert [frame.frame_index for frame in read_video(cut, indices=indices)] == indices
