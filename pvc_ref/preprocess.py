"""Reference preprocessing: a frame or an image to the network's input.

Nothing here normalises: results are uint8 RGB, and the ImageNet mean and standard deviation are applied inside the
model. Frames are squashed to squares, not letterboxed: the aspect ratio is not kept.
All resizing is Pillow's bicubic, which widens its filter when it shrinks an image. Libraries with a fixed 4 x 4 filter
alias, and differ by tens of grey levels on the same picture.
Source: InternVL2 preprocessing (dynamic tiling).
Dimension key:  H height   W width   S tile or frame size in pixels
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_frame(frame_rgb: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """Squash a frame (H, W, 3) uint8 RGB to (size, size, 3) uint8 RGB. Raises InputError for any other input."""
    _check_image(frame_rgb)
    _check_at_least_one(size=size)
    return _resize(frame_rgb, width=size, height=size)


def tile_grid(width: int, height: int, *, max_tiles: int = 12, tile_size: int = 448) -> tuple[int, int]:
    """(columns, rows) of the grid of at most max_tiles tiles whose aspect ratio is closest to width / height.

    Raises InputError if an argument is below 1.
    """
    _check_at_least_one(width=width, height=height, max_tiles=max_tiles, tile_size=tile_size)
    aspect = width / height
    best = (1, 1)
    best_difference = math.inf
    for columns, rows in _candidate_grids(max_tiles):
        difference = abs(aspect - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        # Exactly the same difference: take the grid with more tiles if the image has enough pixels to half fill it.
        elif difference == best_difference and width * height > 0.5 * tile_size**2 * columns * rows:
            best = (columns, rows)
    return best


def tile_image(
    image_rgb: NDArray[np.uint8], *, tile_size: int = 448, max_tiles: int = 12, use_thumbnail: bool = True
) -> NDArray[np.uint8]:
    """Cut an image (H, W, 3) uint8 RGB into tiles: (num_tiles, S, S, 3) uint8 RGB, S = tile_size.

    Order: row by row, each left to right. With use_thumbnail and more than one tile, the whole image squashed to one
    tile follows, so num_tiles can be max_tiles + 1. Raises InputError as resize_frame and tile_grid do.
    """
    _check_image(image_rgb)
    height, width, _ = image_rgb.shape
    columns, rows = tile_grid(width, height, max_tiles=max_tiles, tile_size=tile_size)
    mosaic = _resize(image_rgb, width=columns * tile_size, height=rows * tile_size)
    # (rows, S, columns, S, 3) -> (rows, columns, S, S, 3): a view of the mosaic cut along both axes.
    split = mosaic.reshape(rows, tile_size, columns, tile_size, 3).swapaxes(1, 2)
    tiles: NDArray[np.uint8] = split.reshape(rows * columns, tile_size, tile_size, 3)
    if use_thumbnail and len(tiles) > 1:
        whole = _resize(image_rgb, width=tile_size, height=tile_size)
        tiles = np.concatenate([tiles, whole[np.newaxis]])
    return tiles


def _candidate_grids(max_tiles: int) -> list[tuple[int, int]]:
    """Every (columns, rows) with columns * rows <= max_tiles, fewest tiles first."""
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    # Upstream sorts a Python set by the product only, which leaves grids of equal product in hash order. Sorting
    # also by columns and rows makes the choice between them deterministic.
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0], grid[1]))


def _resize(image_rgb: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    resized = Image.fromarray(image_rgb).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized, dtype=np.uint8)


def _check_image(image_rgb: NDArray[np.uint8]) -> None:
    is_array = isinstance(image_rgb, np.ndarray)
    if is_array and image_rgb.dtype == np.uint8 and image_rgb.ndim == 3 and image_rgb.shape[2] == 3 and image_rgb.size:
        return
    found = f"{image_rgb.dtype} array of shape {image_rgb.shape}" if is_array else type(image_rgb).__name__
    raise InputError(
        f"the image is a {found}",
        expected="a non-empty uint8 numpy array (height, width, 3) in RGB order",
        cause="the image is grey, has an alpha channel, is already normalised, or is a batch",
    )


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} is {number}", expected="1 or more")
