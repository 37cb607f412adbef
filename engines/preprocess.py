"""Runtime preprocessing: camera frame to model frame, image to tiles, and the choice of frames from a video.

Nothing here normalises: the vision graph takes uint8 RGB and applies the ImageNet mean and standard deviation itself.
Needs only numpy and Pillow, since it runs on devices. The reference package has its own version of everything that
makes pixels, and a test checks that both give equal bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.errors import FrameError, MediaError


def to_model_frame(frame_bgr: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """Camera frame (H, W, 3) uint8 BGR -> (size, size, 3) uint8 RGB, C-contiguous; the caller owns the copy.

    Squashes to a square without letterbox by Pillow's bicubic, as PVC does for video. Raises FrameError if the
    frame is not a non-empty uint8 (H, W, 3) array or size is below 1.
    """
    check_frame(frame_bgr)
    if size < 1:
        raise FrameError(
            f"the model frame size is {size}", expected="1 or more pixels", cause="the configuration is damaged"
        )
    # Bicubic at the same size is the identity, so such a frame only has its channels swapped.
    if frame_bgr.shape[:2] != (size, size):
        # Channels are resized one by one, so swapping them afterwards is exact, and cheaper on the smaller frame.
        frame_bgr = np.asarray(Image.fromarray(frame_bgr).resize((size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(frame_bgr[:, :, ::-1])


def to_tiles(
    image_bgr: NDArray[np.uint8], *, size: int, max_tiles: int, use_thumbnail: bool = True
) -> NDArray[np.uint8]:
    """Image (H, W, 3) uint8 BGR -> tiles (num_tiles, size, size, 3) uint8 RGB, row by row.

    With use_thumbnail and more than one tile, a thumbnail (the whole image, squashed) is added at the end, so num_tiles
    is at most max_tiles + 1.
    Raises FrameError as to_model_frame does, MediaError if max_tiles is below 1.
    """
    check_frame(image_bgr)
    height, width = image_bgr.shape[:2]
    columns, rows = tile_grid(width, height, size=size, max_tiles=max_tiles)
    image = Image.fromarray(image_bgr)
    mosaic = np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    corners = ((row * size, column * size) for row in range(rows) for column in range(columns))
    tiles = [mosaic[top : top + size, left : left + size, ::-1] for top, left in corners]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(to_model_frame(image_bgr, size=size))
    return np.stack(tiles)


def num_tiles(image_bgr: NDArray[np.uint8], *, size: int, max_tiles: int, use_thumbnail: bool = True) -> int:
    """Number of tiles that to_tiles makes from an image. Raises what it raises."""
    check_frame(image_bgr)
    columns, rows = tile_grid(image_bgr.shape[1], image_bgr.shape[0], size=size, max_tiles=max_tiles)
    return columns * rows + (use_thumbnail and columns * rows > 1)


def tile_grid(width: int, height: int, *, size: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows), at most max_tiles tiles: the grid whose aspect ratio is nearest to the image's.

    Among grids of the same ratio the larger is chosen if the image has the pixels to half fill it. Source: InternVL2's
    dynamic tiling. Raises MediaError if max_tiles is below 1.
    """
    if max_tiles < 1:
        raise MediaError(f"max_tiles is {max_tiles}", expected="1 (the whole image) or more")
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]
    grids.sort(key=lambda grid: (grid[0] * grid[1], grid))
    gaps = [abs(width / height - columns / rows) for columns, rows in grids]
    nearest = [grid for grid, gap in zip(grids, gaps, strict=True) if gap == min(gaps)]
    fitting = [(c, r) for c, r in nearest[1:] if width * height > 0.5 * size * size * c * r]
    return fitting[-1] if fitting else nearest[0]


def check_frame(frame_bgr: NDArray[np.uint8]) -> None:
    """Raise FrameError unless the frame is a non-empty uint8 array (H, W, 3). Channel order cannot be checked."""
    if not isinstance(frame_bgr, np.ndarray):
        what, cause, fix = (
            f"a {type(frame_bgr).__name__}",
            "the camera returned no frame",
            "check what the camera returned",
        )
    elif frame_bgr.dtype != np.uint8:
        what, cause, fix = str(frame_bgr.dtype), "it was already normalised", "pass the raw frame"
    elif frame_bgr.ndim != 3 or frame_bgr.shape[2] != 3:
        cause = "it is grey, has an alpha channel, is channels-first or is a batch"
        what, fix = f"of shape {frame_bgr.shape}", "convert it first"
    elif frame_bgr.size == 0:
        what, cause, fix = f"empty, of shape {frame_bgr.shape}", "a crop outside the image", "check the crop's bounds"
    else:
        return
    expected = "a numpy array (height, width, 3) of uint8 in BGR order, as from a camera or read_video"
    raise FrameError(f"the frame is {what}", expected=expected, cause=cause, fix=fix)


def segment_indices(num_frames: int, num_segments: int) -> list[int]:
    """Index of one frame near the middle of each of num_segments equal parts of a video.

    Indices never decrease, lie in 0..num_frames - 1, and repeat when there are more segments than frames.
    Source: InternVL2's segment sampling. Raises MediaError if a count is below 1.
    """
    if num_frames < 1:
        raise MediaError(f"the video has {num_frames} frames", expected="1 or more", fix="try another video")
    if num_segments < 1:
        raise MediaError(f"{num_segments} frames were requested", expected="1 or more")
    length = (num_frames - 1) / num_segments
    # Python's round() rounds halves to even, as numpy's does; half-up would shift some frames by one.
    return [int(length / 2 + round(length * i)) for i in range(num_segments)]
