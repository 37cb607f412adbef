"""Videos made of pictures (folders, numbered files, animations): every frame, on time, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import BackendUnavailable, MediaError
from engines.picture_sequences import (
    DEFAULT_FPS,
    PictureSequence,
    is_picture_sequence,
    natural_key,
    open_picture_sequence,
)
from engines.pictures import ON_WHITE
from engines.preprocess import segment_indices
from engines.video import write_video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)]
DURATIONS_MS = [100, 200, 1000, 40, 300]
LOSSLESS = {"gif": {}, "webp": {"lossless": True}, "png": {}, "avif": {"quality": 100, "subsampling": "4:4:4"}}


def picture(value: int, *, width: int = 16, height: int = 12, mode: str = "RGB") -> Image.Image:
    return Image.new("L", (width, height), value).convert(mode)


def fill(folder: Path, names: Sequence[str]) -> Path:
    """Save grey pictures under these names; the i-th has the value 10 * i."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        picture(10 * index).save(folder / name)
    return folder


def values(path: Path, *, indices: Sequence[int] | None = None) -> list[int]:
    sequence = open_picture_sequence(path)
    frames = sequence.frames() if indices is None else sequence.at(indices)
    return [round(float(frame.bgr.mean()) / 10) for frame in frames]


def animation(path: Path, *, frames: Sequence[Image.Image] = ()) -> Path:
    images = list(frames) or [Image.new("RGB", (64, 32), colour) for colour in COLOURS]
    options = LOSSLESS[path.suffix[1:]]
    images[0].save(path, save_all=True, append_images=images[1:], duration=DURATIONS_MS[: len(images)], **options)
    return path


def test_a_folder_is_a_video_in_the_order_a_person_counts(tmp_path: Path) -> None:
    names = ["frame1.png", "Frame2.png", "frame9.jpg", "frame10.png", "frame100.bmp"]
    folder = fill(tmp_path / "frames", names)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture either")
    (folder / "deeper.png").mkdir()
    sequence = open_picture_sequence(folder)
    assert values(folder) == [0, 1, 2, 3, 4] and sequence.notices == ()
    info = sequence.info
    assert (info.path, info.width, info.height, info.num_frames) == (folder, 16, 12, 5)
    assert (info.fps, info.duration_s) == (DEFAULT_FPS, 5 / DEFAULT_FPS)
    frames = list(open_picture_sequence(folder, fps=4).frames())
    assert [(frame.frame_index, frame.time_s) for frame in frames] == [(i, i / 4) for i in range(5)]


def test_names_without_numbers_are_sorted_too() -> None:
    names = ["b.png", "a2b10.png", "a2b9.png", "7.png", "10.png", "a.png"]
    ordered = sorted(map(Path, names), key=natural_key)
    assert [path.name for path in ordered] == ["7.png", "10.png", "a.png", "a2b9.png", "a2b10.png", "b.png"]


def test_a_pattern_takes_its_numbers_alone_and_says_which_are_missing(tmp_path: Path) -> None:
    fill(tmp_path, ["f008.png", "f009.png", "f010.png", "f1000.png", "f7.png", "f0011.png", "g012.png"])
    assert values(tmp_path / "f%03d.png") == [0, 1, 2, 3]
    (notice,) = open_picture_sequence(tmp_path / "f%03d.png").notices
    assert notice == "989 of the numbers 8 to 1000 are missing, the first missing one is 11"
    assert values(tmp_path / "f%d.png") == [4, 3]
    (tmp_path / "f1000.png").unlink()
    assert open_picture_sequence(tmp_path / "f%03d.png").notices == ()


def test_a_pattern_reads_what_ffmpeg_reads(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    for index in range(12):
        picture(20 * index).save(tmp_path / f"a{index:02d}.png")
    with av.open(str(tmp_path / "a%02d.png"), format="image2") as container:
        expected = [(frame.time, frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)]
    found = list(open_picture_sequence(tmp_path / "a%02d.png").frames())
    assert [frame.time_s for frame in found] == pytest.approx([time for time, _ in expected])
    assert all(np.array_equal(frame.bgr, bgr) for frame, (_, bgr) in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["folder", "gif", "webp"])
def test_chosen_frames_come_as_often_as_they_are_asked_for_and_share_no_memory(tmp_path: Path, kind: str) -> None:
    path = fill(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    if kind != "folder":
        path = animation(tmp_path / f"a.{kind}", frames=[picture(10 * index) for index in range(3)])
    frames = list(open_picture_sequence(path).at([1, 1, 2]))
    assert [frame.frame_index for frame in frames] == [1, 1, 2] and not np.shares_memory(frames[0].bgr, frames[1].bgr)
    assert values(path, indices=[0, 2]) == [0, 2] and values(path, indices=[]) == []
    for wrong in ([3], [-1, 0]):
        with pytest.raises(MediaError, match="were requested") as caught:
            open_picture_sequence(path).at(wrong)
        assert caught.value.expected == "0 to 2"


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_an_animation_is_a_video_of_its_own_times(tmp_path: Path, suffix: str) -> None:
    path = animation(tmp_path / f"moves.{suffix}")
    assert is_picture_sequence(path)
    sequence = open_picture_sequence(path)
    info, frames = sequence.info, list(sequence.frames())
    assert (info.width, info.height, info.num_frames, info.duration_s) == (64, 32, 5, pytest.approx(1.64))
    assert info.fps == pytest.approx(5 / 1.64)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.3, 1.3, 1.34])
    shown = [frame.bgr[..., ::-1].astype(int) for frame in frames]
    atol = 3 if suffix == "avif" else 0  # AV1 is lossy here; worst 2
    assert all(np.abs(rgb - colour).max() <= atol for rgb, colour in zip(shown, COLOURS, strict=True))


def sampled(sequence: PictureSequence, num_segments: int) -> list[int]:
    return [frame.frame_index for frame in sequence.shown_at(sequence.info.sample_times(num_segments))]


def test_frames_are_sampled_by_their_time(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.gif")  # 5 frames in 1.64 s; frame 2 lasts one second
    assert segment_indices(5, 5) == [0, 1, 2, 2, 3]  # expects equal frame times; by time, the middles are
    # 0.164, 0.492, 0.820 twice, 1.148 s; the frames start at 0, 0.1, 0.3, 1.3 and 1.34 s.
    assert sampled(open_picture_sequence(path), 5) == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("fps", [0.5, 4.0, 25.0, 29.97, 240.0])
def test_at_a_constant_rate_the_frames_of_internvl_s_rule_are_sampled(tmp_path: Path, fps: float) -> None:
    folder = fill(tmp_path / "frames", [f"{index}.bmp" for index in range(23)])
    sequence = open_picture_sequence(folder, fps=fps)
    for num_segments in (1, 2, 7, 16, 23, 40):
        assert sampled(sequence, num_segments) == segment_indices(23, num_segments)


@pytest.mark.parametrize(("suffix", "demuxer"), [("gif", "gif"), ("png", "apng")])
def test_an_animation_begins_its_frames_when_ffmpeg_does(tmp_path: Path, suffix: str, demuxer: str) -> None:
    av = pytest.importorskip("av")
    path = animation(tmp_path / f"moves.{suffix}")
    with av.open(str(path), format=demuxer) as container:
        expected = [float(frame.time) for frame in container.decode(video=0)]
    assert open_picture_sequence(path).times_s == pytest.approx(expected)


def test_a_frame_that_states_no_time_is_shown_as_long_as_browsers_show_it(tmp_path: Path) -> None:
    images = [picture(value) for value in (0, 100, 200)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[0, 10, 20])
    assert open_picture_sequence(tmp_path / "a.gif").times_s == pytest.approx([0, 0.1, 0.2])


def test_an_animation_does_not_show_the_still_that_stands_in_for_it(tmp_path: Path) -> None:
    images = [picture(value) for value in (200, 10, 20)]
    path = tmp_path / "a.png"
    images[0].save(path, save_all=True, append_images=images[1:], default_image=True, duration=100)
    assert values(path) == [1, 2] and open_picture_sequence(path).info.num_frames == 2


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_transparent_frames_lie_on_white_and_that_is_reported(tmp_path: Path, suffix: str) -> None:
    # On a background of alpha 0 the WebP encoder crops the picture and stores no alpha; GIF has only alpha 0 and 255.
    ground = (0, 0, 0, 0 if suffix == "gif" else 1)
    images = [Image.new("RGBA", (16, 12), ground) for _ in range(2)]
    for index, image in enumerate(images):
        image.paste((255, 0, 0, 255), (4 * index, 0, 4 * index + 4, 12))
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, disposal=2, **LOSSLESS[suffix])
    sequence = open_picture_sequence(path)
    for index, frame in enumerate(sequence.frames()):
        expected = np.full((12, 16, 3), 255)
        expected[:, 4 * index : 4 * index + 4] = (0, 0, 255)
        assert np.abs(frame.bgr - expected).max() <= 1
    assert sequence.notices == (ON_WHITE,)


def test_a_still_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    picture(70).save(tmp_path / "still.png")
    assert is_picture_sequence(tmp_path / "still.png") and values(tmp_path / "still.png") == [7]


def test_the_first_picture_of_another_size_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "frames", ["1.png", "2.png", "4.png"])
    picture(0, width=12, height=16).save(folder / "3.png")
    with pytest.raises(MediaError) as caught:
        open_picture_sequence(folder)
    error = caught.value
    assert error.what == f"{folder}/3.png is 12x16, but {folder}/1.png, the first picture, is 16x12"
    assert "one size" in error.expected and "scale=16:12" in error.fix


def test_a_picture_that_is_upright_by_its_metadata_alone_is_of_the_same_size(tmp_path: Path) -> None:
    folder = fill(tmp_path / "frames", ["1.jpg"])
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(10, width=12, height=16).save(folder / "2.jpg", exif=exif)
    assert values(folder) == [0, 1]


def spoil_header(path: Path) -> None:
    path.write_bytes(b"\0" * 100)


def spoil_pixels(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("spoil", [spoil_header, spoil_pixels])
def test_a_picture_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = fill(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    spoil(folder / "1.png")
    sequence = open_picture_sequence(folder)
    assert [round(float(frame.bgr.mean()) / 10) for frame in sequence.frames()] == [0, 2]
    (notice,) = sequence.notices
    assert "left out: 1; the first" in notice and "1.png cannot be read as an image" in notice
    for name in ("0.png", "2.png"):
        spoil(folder / name)
    with pytest.raises(MediaError, match="0.png cannot be read as an image"):
        list(open_picture_sequence(folder).frames())


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_that_is_cut_short_shows_what_it_has_and_says_so(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(5)]
    path = animation(tmp_path / f"a.{suffix}", frames=noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if suffix == "webp":  # libwebp refuses the whole file
        with pytest.raises(MediaError, match=r"a\.webp cannot be read"):
            open_picture_sequence(path)
        return
    sequence = open_picture_sequence(path)
    frames = list(sequence.frames())
    assert 1 <= len(frames) == sequence.info.num_frames <= 3
    assert any(
        "of its 5 frames can be read" in notice or "is probably truncated" in notice for notice in sequence.notices
    )


@pytest.mark.parametrize(
    ("name", "what", "cause", "fix"),
    [
        ("empty", "contains no pictures", "folder of videos", "name one file: ls "),
        ("full/%02d.png", "no file matches", "another width", "ls "),
        ("none/%d.png", "no file matches", "another width", "ls "),
        ("full/%d_%d.png", "has several numbers", "", "ls "),
    ],
)
def test_a_source_without_pictures_is_explained(tmp_path: Path, name: str, what: str, cause: str, fix: str) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "full", ["1.png"])
    assert is_picture_sequence(tmp_path / name)
    with pytest.raises(MediaError, match=what) as caught:
        open_picture_sequence(tmp_path / name)
    assert cause in caught.value.cause and caught.value.fix.startswith(fix) and caught.value.expected


def test_a_folder_of_heic_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(BackendUnavailable, match="HEIC"):
        open_picture_sequence(tmp_path)


def test_what_is_read_elsewhere_is_left_to_its_reader(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_video(film, [np.zeros((32, 32, 3), np.uint8)] * 2, fps=5)
    (tmp_path / "film.gif").write_bytes(film.read_bytes())
    (tmp_path / "take %d.mp4").write_bytes(film.read_bytes())
    (tmp_path / "empty.png").touch()
    for name in ("film.mp4", "film.gif", "take %d.mp4", "empty.png", "missing.mp4", "100%.mp4"):
        assert not is_picture_sequence(tmp_path / name), name
    for url in ("rtsp://camera/%d", "http://host/a%20day.mp4"):
        assert not is_picture_sequence(url)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 5000.0])
def test_a_rate_that_no_video_has_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(MediaError, match="cannot be shown at"):
        open_picture_sequence(fill(tmp_path / "frames", ["1.png"]), fps=fps)


def test_an_animation_is_given_no_other_rate(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="states how long") as caught:
        open_picture_sequence(animation(tmp_path / "a.gif"), fps=5)
    assert caught.value.fix == "leave out --fps"
