"""The reference preprocessing, compared with Pillow and with numbers worked out by hand from the published rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvc_ref.errors import InputError
from pvc_ref.preprocess import IMAGENET_MEAN, IMAGENET_STD, resize_frame, tile_grid, tile_image

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_imagenet_constants_are_the_published_ones() -> None:
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (7, 300), (64, 64), (1, 1)])
def test_resize_frame_is_pillow_bicubic_without_keeping_the_aspect_ratio(height: int, width: int) -> None:
    frame = noise(height, width)
    expected = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BICUBIC))
    resized = resize_frame(frame, size=64)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)


def test_resize_frame_reads_a_view_with_strides_as_the_same_pixels() -> None:
    frame = noise(80, 120)
    view = frame[::-1, ::2]
    np.testing.assert_array_equal(resize_frame(view, size=32), resize_frame(np.ascontiguousarray(view), size=32))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        # 1600/900 = 1.778. 2/1 and 4/2 are both 0.222 away (3/2: 0.278; 5/3 and 7/4 have too many tiles).
        # Tie: 1,440,000 pixels > 0.5 * 448^2 * 8 = 802,816, so the later one.
        (1600, 900, (4, 2)),
        # 800/1300 = 0.615. 2/3 is 0.051 away, 1/2 is 0.115; 3/5 has 15 tiles, 4/6 has 24.
        (800, 1300, (2, 3)),
        # Ratio 1: (1,1), (2,2), (3,3) tie. 200,704 pixels is not > 0.5 * 448^2 * 4 = 401,408.
        (448, 448, (1, 1)),
        # Ratio 2: (2,1), (4,2) tie. 401,408 pixels is not > 0.5 * 448^2 * 8 = 802,816.
        (896, 448, (2, 1)),
        # Ratio 1 again: 810,000 > 401,408 takes (2,2); not > 0.5 * 448^2 * 9 = 903,168, so not (3,3).
        (900, 900, (2, 2)),
        (1000, 1000, (3, 3)),  # 1,000,000 > 903,168
        # Ratio 30: the widest grid of 12 tiles. The same upright: 1/30 is nearest to 1/12.
        (3000, 100, (12, 1)),
        (100, 3000, (1, 12)),
        # Ratio 1.75 lies exactly between 3/2 and 2/1: (2,1), (3,2), (4,2) tie, in that order.
        (700, 400, (2, 1)),  # 280,000 <= 0.5 * 448^2 * 6 = 602,112
        (1120, 640, (3, 2)),  # 602,112 < 716,800 <= 802,816
        (1400, 800, (4, 2)),  # 1,120,000 > 802,816
    ],
    ids=lambda value: str(value),
)
def test_tile_grid_gives_the_grid_worked_out_by_hand(width: int, height: int, expected: tuple[int, int]) -> None:
    assert tile_grid(width, height) == expected


@pytest.mark.parametrize(("tile_size", "expected"), [(14, (24, 1)), (13, (25, 1))])
def test_a_tie_goes_to_the_larger_grid_only_above_half_its_pixels(tile_size: int, expected: tuple[int, int]) -> None:
    # 245/10 = 24.5, exactly between 24/1 and 25/1. Area 2,450 = 0.5 * 14^2 * 25 is not above it; 0.5 * 13^2 * 25
    # = 2,112.5 is below it.
    assert tile_grid(245, 10, max_tiles=25, tile_size=tile_size) == expected


@pytest.mark.parametrize("max_tiles", [1, 5, 7, 12])
def test_tile_grid_keeps_within_the_tile_limit(max_tiles: int) -> None:
    sizes = np.random.default_rng(3).integers(1, 3000, (50, 2)).tolist()
    grids = [tile_grid(width, height, max_tiles=max_tiles) for width, height in sizes]
    assert {columns * rows for columns, rows in grids} <= set(range(1, max_tiles + 1))


def quadrants() -> np.ndarray:
    """64 x 64: red green / blue white."""
    image = np.empty((64, 64, 3), np.uint8)
    image[:32, :32], image[:32, 32:], image[32:, :32], image[32:, 32:] = RED, GREEN, BLUE, WHITE
    return image


def test_tiles_go_left_to_right_then_down_and_the_thumbnail_comes_last() -> None:
    # 64x64 in at most 4 tiles of 32: 4,096 pixels > 0.5 * 32^2 * 4, so 2x2, and each quadrant is one unchanged tile.
    tiles = tile_image(quadrants(), tile_size=32, max_tiles=4)
    assert tiles.shape == (5, 32, 32, 3) and tiles.dtype == np.uint8
    for tile, colour in zip(tiles[:4], (RED, GREEN, BLUE, WHITE), strict=True):
        np.testing.assert_array_equal(tile, np.full((32, 32, 3), colour, np.uint8))
    np.testing.assert_array_equal(tiles[4], resize_frame(quadrants(), size=32))


def test_columns_and_rows_are_not_swapped_in_a_wide_image() -> None:
    # 96x32: ratio 3, and 3/1 is the nearest grid of at most 3 tiles.
    image = np.concatenate([np.full((32, 32, 3), colour, np.uint8) for colour in (RED, GREEN, BLUE)], axis=1)
    tiles = tile_image(image, tile_size=32, max_tiles=3)
    assert [tuple(tile[16, 16].tolist()) for tile in tiles[:3]] == [RED, GREEN, BLUE]
    turned = tile_image(image.swapaxes(0, 1), tile_size=32, max_tiles=3)
    assert [tuple(tile[16, 16].tolist()) for tile in turned[:3]] == [RED, GREEN, BLUE]


def test_tiles_put_back_together_are_the_whole_image_resized_once() -> None:
    image = noise(90, 160)
    # 160/90: (2,1) and (4,2) tie; 14,400 pixels > 0.5 * 32^2 * 8 = 4,096, so (4,2).
    tiles = tile_image(image, tile_size=32)
    assert len(tiles) == 4 * 2 + 1
    mosaic = np.concatenate([np.concatenate(list(tiles[row * 4 : row * 4 + 4]), axis=1) for row in range(2)], axis=0)
    expected = np.asarray(Image.fromarray(image).resize((128, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(mosaic, expected)


@pytest.mark.parametrize(("max_tiles", "num_tiles"), [(1, 1), (4, 5)])
def test_a_thumbnail_is_added_to_more_than_one_tile_where_it_is_wanted(max_tiles: int, num_tiles: int) -> None:
    tiles = tile_image(quadrants(), tile_size=32, max_tiles=max_tiles)
    assert len(tiles) == num_tiles
    without = tile_image(quadrants(), tile_size=32, max_tiles=max_tiles, use_thumbnail=False)
    np.testing.assert_array_equal(without, tiles[:max_tiles])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resize_frame(np.zeros((8, 8), np.uint8), size=4), r"shape \(8, 8\)(.|\n)*\(height, width, 3\)"),
        (lambda: resize_frame(np.zeros((8, 8, 4), np.uint8), size=4), "alpha channel"),
        (lambda: resize_frame(np.zeros((0, 8, 3), np.uint8), size=4), "non-empty"),
        (lambda: resize_frame(np.zeros((8, 8, 3), np.uint8), size=0), "size is 0"),
        (lambda: tile_image(np.zeros((8, 8, 3), np.float32)), "float32 array"),
        (lambda: tile_image(None), "NoneType"),
        (lambda: tile_grid(0, 5), "width is 0"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_the_reference_preprocessing_does_not_import_the_runtime() -> None:
    code = (
        "import sys, pvc_ref.preprocess; "
        "print([m for m in sys.modules if m.split('.')[0] in ('engines', 'pvc_export', 'cv2')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
