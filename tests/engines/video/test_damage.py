"""Damaged files: decodable frames are used, missing ones counted, and an intact file is never called damaged."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engines.errors import MediaError
from engines.synthetic import render_clip
from engines.video import Damage, VideoReader, probe_video, write_video

av = pytest.importorskip("av")

NUM_FRAMES, FPS = 40, 10


def read(path: Path) -> tuple[int, Damage | None]:
    with VideoReader(path) as reader:
        return sum(1 for _ in reader.frames()), reader.damage


def remuxed(source: Path, path: Path, *, keep: Callable[[int], bool] = lambda index: True, **options: str) -> Path:
    """Copy the packets into another file, without those that `keep` rejects."""
    with av.open(str(source)) as container, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        for index, packet in enumerate(packets):
            if keep(index):
                packet.stream = stream
                target.mux(packet)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, render_clip(NUM_FRAMES, seed=3, width=192, height=144), fps=FPS)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts"])
def test_a_whole_file_is_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole{suffix}"
    write_video(path, render_clip(NUM_FRAMES, seed=3, width=192, height=144), fps=FPS)
    assert read(path) == (NUM_FRAMES, None)


def test_frames_hidden_by_an_edit_list_are_not_missed(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / "trimmed.mp4"
    with av.open(str(clip)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                shift = 3 * packet.duration
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    assert read(path) == (NUM_FRAMES - 3, None)


def test_a_variable_rate_is_no_damage(tmp_path: Path) -> None:
    path = variable(tmp_path / "vfr.mkv", [0.0, 1.0, 2.0, 2.1, 2.2, 2.3, 5.0, 9.0])
    assert read(path) == (8, None)


def variable(path: Path, times_s: list[float]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * index, np.uint8), format="bgr24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_sound_that_continues_after_the_video_is_no_damage(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("pcm_s16le", rate=8000, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
        for index in range(7):  # 7 s of sound for 4 s of video
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 8000 * index, Fraction(1, 8000)
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    assert read(path) == (NUM_FRAMES, None)


def test_reading_that_stops_early_misses_nothing(clip: Path) -> None:
    with VideoReader(clip) as reader:
        frames = reader.frames()
        next(frames), next(frames)
        assert reader.damage is None
        frames.close()


@pytest.mark.parametrize(("suffix", "options"), [(".mkv", {}), (".mp4", {"movflags": "faststart"}), (".flv", {})])
def test_a_file_that_ends_early_is_used_as_far_as_it_goes(
    tmp_path: Path, clip: Path, suffix: str, options: dict[str, str]
) -> None:
    path = remuxed(clip, tmp_path / f"cut{suffix}", **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    num_shown, damage = read(path)
    assert 10 < num_shown < 30 and damage is not None
    assert damage.num_expected == NUM_FRAMES and damage.num_missing == NUM_FRAMES - num_shown
    assert damage.missing_s == pytest.approx(NUM_FRAMES / FPS - num_shown / FPS, abs=1)  # a few frames are reordered
    assert f"{NUM_FRAMES - num_shown} of {NUM_FRAMES} frames are missing" in str(damage)
    assert "earlier than its header states" in str(damage)
    info = probe_video(path)
    with VideoReader(path) as reader:  # all existing frames are sampled, and no others
        times_s = [frame.time_s for frame in reader.shown_at(info.sample_times(8))]
    assert len(times_s) == 8 and len(set(times_s)) >= 6


def test_packets_lost_on_the_way_are_counted_by_the_constant_rate(tmp_path: Path, clip: Path) -> None:
    path = remuxed(clip, tmp_path / "whole.ts")
    data = path.read_bytes()
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    hole = range(len(packets) // 2, len(packets) // 2 + 8)
    path = tmp_path / "hole.ts"
    path.write_bytes(b"".join(packet for index, packet in enumerate(packets) if index not in hole))
    num_shown, damage = read(path)
    assert 20 < num_shown < NUM_FRAMES and damage is not None
    assert (damage.num_missing, damage.num_expected) == (NUM_FRAMES - num_shown, NUM_FRAMES)
    assert "a packet is incomplete" in damage.complaint
    with VideoReader(path) as reader:
        times_s = [frame.time_s for frame in reader.frames()]
    assert times_s == sorted(times_s)


def test_bytes_that_were_changed_show_as_faults_or_missing_frames(tmp_path: Path, clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    start, rng = data.index(b"mdat") + 4000, np.random.default_rng(0)
    for offset in range(start, len(data) - 6000, 3000):
        data[offset : offset + 200] = rng.integers(0, 256, 200, dtype=np.uint8).tobytes()
    path = tmp_path / "scratched.mp4"
    path.write_bytes(data)
    num_shown, damage = read(path)
    assert num_shown > 5 and damage is not None
    assert damage.num_faulty > 0 and damage.num_missing == NUM_FRAMES - num_shown


def test_a_header_that_states_more_frames_than_there_are_is_not_believed_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "short.avi"
    write_video(path, render_clip(NUM_FRAMES, seed=3, width=192, height=144), fps=FPS)
    data = bytearray(path.read_bytes())
    length = data.index(b"strh") + 8 + 32  # dwLength in the stream's header and in the file's
    for offset in (length, data.index(b"avih") + 8 + 16):
        data[offset : offset + 4] = (2 * NUM_FRAMES).to_bytes(4, "little")
    path.write_bytes(data)
    num_shown, damage = read(path)
    assert num_shown == NUM_FRAMES and damage is not None
    assert (damage.num_missing, damage.num_expected) == (NUM_FRAMES, 2 * NUM_FRAMES)


def with_cover(path: Path, *, num_frames: int, has_sound: bool) -> Path:
    """Write a cover picture first, then a grey video or sound."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 160, 120, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=10) if num_frames else None
        sound = container.add_stream("aac", rate=44100, layout="mono") if has_sound else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        red = av.VideoFrame.from_ndarray(np.full((120, 160, 3), (0, 0, 255), np.uint8), format="bgr24")
        container.mux(picture.encode(red))
        for index in range(num_frames):
            grey = np.full((48, 64, 3), 40 + 20 * index, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="bgr24")))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(sound.encode(frame))
        for stream in filter(None, (video, sound, picture)):
            container.mux(stream.encode(None))
    if video is not None:
        put_tags_first(path)
    return path


def put_tags_first(path: Path) -> None:
    """Move the box with the cover before those of the tracks within moov, as some programs write it."""
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    end, at, boxes = start + int.from_bytes(data[start : start + 4], "big"), start + 8, []
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at : at + size])
        at += size
    boxes.sort(key=lambda box: box[4:8] != b"udta")
    path.write_bytes(data[: start + 8] + b"".join(boxes) + data[end:])


def test_a_cover_before_the_film_is_not_the_film(tmp_path: Path) -> None:
    path = with_cover(tmp_path / "film.mp4", num_frames=5, has_sound=False)
    with av.open(str(path)) as container:  # a reader that takes the first stream would show the cover
        assert container.streams[0].codec_context.width == 160 and len(container.streams.video) == 2
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames) == (64, 48, 5)
    with VideoReader(path) as reader:
        assert [round((frame.bgr.mean() - 40) / 20) for frame in reader.frames()] == list(range(5))


def test_a_song_with_a_cover_is_called_so(tmp_path: Path) -> None:
    path = with_cover(tmp_path / "song.mp4", num_frames=0, has_sound=True)
    with pytest.raises(
        MediaError, match=r"song\.mp4 has no video stream: it contains sound and a cover picture"
    ) as caught:
        probe_video(path)
    assert "music file" in caught.value.cause and "--image cover.png" in caught.value.fix
