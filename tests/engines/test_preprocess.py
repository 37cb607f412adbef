"""The runtime's preprocessing: bit-equal to the reference and to Pillow's bicubic, and strict about its frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines.preprocess
import pvc_ref.preprocess
from engines.errors import FrameError, MediaError
from engines.preprocess import segment_indices, to_model_frame

ROOT = Path(__file__).resolve().parents[2]
SIZE = 448


def photograph(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 BGR, like a photograph: slow shading, hard edges, texture down to one pixel."""
    rng = np.random.default_rng(seed)
    shading = np.add.outer(np.linspace(40, 120, height), np.linspace(0, 80, width))[..., np.newaxis]
    blocks = rng.integers(-40, 41, (height // 40 + 1, width // 40 + 1, 3)).repeat(40, 0).repeat(40, 1)[:height, :width]
    texture = rng.normal(0, 25, (height, width, 3))
    return np.clip(shading + blocks + texture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width"),
    [(720, 1280), (1280, 720), (448, 448), (448, 640), (640, 448), (90, 160), (449, 447), (3, 700), (1, 1)],
    ids=str,
)
def test_runtime_and_reference_give_the_same_bits(height, width):
    frame_bgr = photograph(height, width)
    expected = pvc_ref.preprocess.resize_frame(np.ascontiguousarray(frame_bgr[..., ::-1]), size=SIZE)
    np.testing.assert_array_equal(to_model_frame(frame_bgr, size=SIZE), expected)


def test_model_frame_is_pillow_bicubic():
    frame_bgr = photograph(300, 500)
    frame_rgb = Image.fromarray(np.ascontiguousarray(frame_bgr[..., ::-1]))
    expected = np.asarray(frame_rgb.resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(to_model_frame(frame_bgr, size=64), expected)


def test_cv2_cubic_is_far_from_the_model_frame():
    cv2 = pytest.importorskip("cv2")
    frame_bgr = photograph(1080, 1920)
    ours = to_model_frame(frame_bgr, size=SIZE).astype(int)
    theirs = cv2.resize(frame_bgr, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)[..., ::-1].astype(int)
    difference = np.abs(ours - theirs)
    # Measured over seeds 0 to 2, OpenCV 5.0.0, Pillow 13.0.0: max 108 to 114, mean 15.7. OpenCV's filter does not widen
    # when it shrinks an image, so it aliases.
    assert difference.max() > 20
    assert difference.mean() > 5


@pytest.mark.parametrize("module", [engines.preprocess, pvc_ref.preprocess], ids=lambda module: module.__name__)
def test_no_preprocessing_source_mentions_cv2(module):
    assert "cv2" not in Path(module.__file__).read_text(encoding="utf-8")


def test_bicubic_at_the_same_size_is_the_identity():
    frame_bgr = photograph(SIZE, SIZE)
    # This is why to_model_frame may skip Pillow for a frame of this size.
    np.testing.assert_array_equal(
        np.asarray(Image.fromarray(frame_bgr).resize((SIZE, SIZE), Image.Resampling.BICUBIC)), frame_bgr
    )
    np.testing.assert_array_equal(to_model_frame(frame_bgr, size=SIZE), frame_bgr[..., ::-1])


@pytest.mark.parametrize("side", [SIZE, 100], ids=["same size", "resized"])
def test_blue_camera_frame_becomes_blue_rgb(side):
    frame_bgr = np.zeros((side, side, 3), np.uint8)
    frame_bgr[..., 0] = 255
    model_frame = to_model_frame(frame_bgr, size=SIZE)
    assert model_frame.shape == (SIZE, SIZE, 3) and model_frame.dtype == np.uint8
    np.testing.assert_array_equal(model_frame, np.full((SIZE, SIZE, 3), (0, 0, 255), np.uint8))


@pytest.mark.parametrize("side", [SIZE, 100], ids=["same size", "resized"])
def test_model_frame_is_a_contiguous_copy(side):
    frame_bgr = photograph(side, side)
    before = frame_bgr.copy()
    model_frame = to_model_frame(frame_bgr, size=SIZE)
    assert model_frame.flags.c_contiguous and model_frame.flags.writeable
    model_frame[:] = 0
    np.testing.assert_array_equal(frame_bgr, before)


def test_a_flipped_view_of_a_frame_is_read_in_its_own_order():
    frame_bgr = photograph(200, 300)
    expected = to_model_frame(np.ascontiguousarray(frame_bgr[:, ::-1]), size=64)
    np.testing.assert_array_equal(to_model_frame(frame_bgr[:, ::-1], size=64), expected)


@pytest.mark.parametrize(
    ("frame", "what", "cause"),
    [
        (None, "frame is a NoneType", "camera returned no frame"),
        (np.zeros((8, 8, 3), np.float32), "frame is float32", "already normalised"),
        (np.zeros((8, 8, 3), np.uint16), "frame is uint16", ""),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)", "grey"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)", "alpha"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)", "channels-first"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"shape \(1, 8, 8, 3\)", "batch"),
        (np.zeros((0, 8, 3), np.uint8), "frame is empty", "a crop outside the image"),
    ],
    ids=["none", "float", "uint16", "grey", "alpha", "channels first", "batch", "empty"],
)
def test_a_frame_of_another_kind_is_refused_with_its_likely_cause(frame, what, cause):
    with pytest.raises(FrameError, match=what) as info:
        to_model_frame(frame, size=SIZE)
    assert cause in info.value.cause and "uint8" in info.value.expected


def test_a_size_below_one_is_refused():
    with pytest.raises(FrameError, match="size is 0"):
        to_model_frame(np.zeros((8, 8, 3), np.uint8), size=0)


@pytest.mark.parametrize(
    ("num_frames", "num_segments", "expected"),
    [
        # seg = 9/4 = 2.25, half 1.125; round(0, 2.25, 4.5, 6.75) = 0, 2, 4 (half to even), 7.
        (10, 4, [1, 3, 5, 8]),
        (10, 1, [4]),  # seg 9: int(4.5)
        # More segments than frames: seg = 2/6; 0.167 + round(0, .33, .67, 1, 1.33, 1.67) = 0, 0, 1, 1, 1, 2.
        (3, 6, [0, 0, 1, 1, 1, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_segment_indices_are_those_worked_out_by_hand(num_frames, num_segments, expected):
    assert segment_indices(num_frames, num_segments) == expected


def test_segment_indices_equal_those_of_numpy_never_decrease_and_stay_in_the_video():
    for num_frames in (1, 2, 3, 10, 31, 64, 895, 9000):
        for num_segments in (1, 2, 3, 4, 16, 64, 96):
            segment = (num_frames - 1) / num_segments
            indices = segment_indices(num_frames, num_segments)
            assert indices == [int(segment / 2 + np.round(segment * index)) for index in range(num_segments)]
            assert indices == sorted(indices) and indices[0] >= 0 and indices[-1] < num_frames


@pytest.mark.parametrize(
    ("num_frames", "num_segments", "message"), [(0, 4, "has 0 frames"), (4, 0, "0 frames were requested")]
)
def test_segments_that_cannot_be_cut_are_refused(num_frames, num_segments, message):
    with pytest.raises(MediaError, match=message):
        segment_indices(num_frames, num_segments)


def test_the_runtime_preprocessing_imports_neither_torch_nor_the_reference():
    code = (
        "import sys, engines.preprocess, engines.video; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'pvc_ref', 'pvc_export', 'cv2', 'av')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
