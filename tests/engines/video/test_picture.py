"""Pictures: 38 clips read as they were rendered, in both commands; no combing between fields; eight orientations."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.video import picture, read_video
from engines.video.picture import Deinterlacer, to_bgr, turned

from .colours import ENCODERS, ORIENTATIONS, Clip, clips, encode, marked_interlaced, worst_error, worst_errors

av = pytest.importorskip("av")


def path_of(clip: Clip, folder: Path) -> Path:
    return folder / ("clip.mkv" if clip.orientation == "upright" else "clip.mp4")


@pytest.mark.parametrize("clip", clips(), ids=str)
def test_flat_patches_read_as_they_were_rendered(tmp_path: Path, clip: Clip) -> None:
    if ENCODERS[clip.codec][0] not in av.codecs_available:
        pytest.skip(f"this PyAV has no {ENCODERS[clip.codec][0]}")
    path = path_of(clip, tmp_path)
    encode(clip, path)
    errors = worst_errors(clip, path)
    assert errors["frames"] == 1
    assert max(errors["run"], errors["pvc-live"]) <= clip.limit, errors  # worst 1 in SDR, 4 in HDR


def test_the_clips_are_over_everything_that_a_file_can_say() -> None:
    every = clips()
    assert len(every) >= 30 and {clip.codec for clip in every} == set(ENCODERS)
    assert {clip.depth for clip in every} == {8, 10, 12} and {clip.curve for clip in every} == {1, 16, 18}
    assert {clip.matrix for clip in every} == {1, 6, 9} and {clip.orientation for clip in every} == set(ORIENTATIONS)
    assert {(clip.is_full, clip.is_interlaced) for clip in every} >= {(True, False), (False, True), (False, False)}


H264, HEVC = Clip(codec="H.264"), Clip(codec="HEVC", layout="yuv420p10le", matrix=9, primaries=9)


@pytest.mark.parametrize(
    ("clip", "name", "wrong"),
    [
        (H264, "_matrix", lambda frame: 5),
        (replace(H264, matrix=6), "_matrix", lambda frame: 1),
        (replace(HEVC, curve=16), "_matrix", lambda frame: 5),
        (H264, "_range", lambda frame: 2),
        (replace(HEVC, primaries=1, matrix=1, is_full=True), "_range", lambda frame: 1),
        (replace(HEVC, curve=16), "PQ", 99),
        (replace(HEVC, curve=18), "HLG", 99),
        (replace(HEVC, curve=16), "HDR_WHITE_NITS", 100),
        (replace(HEVC, curve=18), "HLG_WHITE", 0.6),
        (replace(HEVC, curve=16), "TO_BT709", np.eye(3, dtype=np.float32)),
        (replace(H264, orientation="mirrored"), "turned", lambda bgr, matrix: np.rot90(bgr, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_reader_that_is_wrong_is_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Clip, name: str, wrong: object
) -> None:
    path = path_of(clip, tmp_path)
    encode(clip, path)
    picture._light_of_codes.cache_clear()
    monkeypatch.setattr(picture, name, wrong)
    try:
        assert max(worst_error(clip, frame.bgr) for frame in read_video(path)) > clip.limit + 2
    finally:
        picture._light_of_codes.cache_clear()


@pytest.mark.parametrize(("width", "height", "matrix"), [(1280, 534, 1), (960, 720, 1), (720, 576, 5), (720, 480, 5)])
def test_an_untagged_video_has_the_matrix_of_its_size(width: int, height: int, matrix: int) -> None:
    frame = av.VideoFrame(width, height, "yuv420p")
    assert picture._matrix(frame) == matrix
    frame.colorspace = 9
    assert picture._matrix(frame) == 9


def test_what_is_brighter_than_white_is_white() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p10le")
    for plane, code in zip(frame.planes, (64 + 876 * 3 // 4, 512, 512), strict=True):  # PQ 75 %: 983 cd/m2
        np.frombuffer(plane, np.uint16)[:] = code
    frame.color_trc, frame.color_primaries, frame.colorspace = 16, 9, 9
    assert (to_bgr(frame) == 255).all()


PILLOWS = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "180": Image.Transpose.ROTATE_180,
    "90 clockwise": Image.Transpose.ROTATE_270,
    "90 counter-clockwise": Image.Transpose.ROTATE_90,
    "transposed": Image.Transpose.TRANSPOSE,
    "anti-transposed": Image.Transpose.TRANSVERSE,
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_display_matrix_turns_as_pillow_does(name: str) -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (a, b, c, d), _ = ORIENTATIONS[name]
    matrix = np.array([[a << 16, b << 16, 0], [c << 16, d << 16, 0], [0, 0, 1 << 30]], np.int32)
    image = Image.fromarray(bgr)
    expected = np.asarray(image.transpose(PILLOWS[name]) if name in PILLOWS else image)
    assert np.array_equal(turned(bgr, matrix), expected) and turned(bgr, matrix).flags.c_contiguous


def test_a_matrix_between_two_quarter_turns_becomes_the_nearer_one() -> None:
    bgr = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    cosine, sine = (round(65536 * part) for part in (np.cos(np.radians(80)), np.sin(np.radians(80))))
    matrix = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1 << 30]], np.int32)
    assert np.array_equal(turned(bgr, matrix), np.rot90(bgr, -1))


def fields(first: int, second: int) -> av.VideoFrame:
    """Two fields of a white bar on black: at column `first` in the upper field, at `second` in the lower one."""
    luma = np.full((64, 96), 16, np.uint8)
    luma[0::2, first : first + 12] = 235
    luma[1::2, second : second + 12] = 235
    frame = av.VideoFrame(96, 64, "yuv420p")
    for plane, values in zip(frame.planes, (luma, 128, 128), strict=True):
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] = values
    frame.time_base = Fraction(1, 25)
    return frame


def combing(bgr: np.ndarray) -> float:
    """Mean difference between each row and the mean of its neighbours, away from the edges."""
    grey = bgr[8:-8, :, 0].astype(float)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


def test_fields_of_a_moving_bar_are_taken_apart() -> None:
    deinterlacer, shown = Deinterlacer(), []
    woven = []
    for index in range(5):
        frame = fields(10 + 12 * index, 16 + 12 * index)
        frame.pts = index
        woven.append(frame)
        shown += deinterlacer.push(marked_interlaced(frame))
    shown += deinterlacer.flush()
    assert [facts.pts for facts, _ in shown] == list(range(5))
    for frame, (_, pixels) in zip(woven, shown, strict=True):
        assert combing(to_bgr(pixels)) < combing(to_bgr(frame)) / 5
        assert to_bgr(pixels).max() > 230  # and it is not black


def test_progressive_frames_are_left_as_they_are() -> None:
    deinterlacer = Deinterlacer()
    frame = fields(10, 16)
    assert deinterlacer.push(frame) == [(frame, frame)] and deinterlacer.flush() == []


@pytest.mark.parametrize(("layout", "value"), [("gray", 200), ("rgb24", 90)])
def test_layouts_that_are_always_full_range_are_not_stretched(layout: str, value: int) -> None:
    frame = av.VideoFrame(16, 16, layout)
    np.frombuffer(frame.planes[0], np.uint8)[:] = value
    assert (to_bgr(frame) == value).all()
