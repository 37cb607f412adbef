"""Images as static videos: each tile repeated, through the stream's graphs, with a separate ring.

Source: PVC (arXiv 2412.09613), images as static videos; InternVL2's dynamic tiling.
Token order: (tile, repeat, token).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from .manifest import Manifest
from .memory import Array
from .preprocess import num_tiles, to_tiles
from .session import Session
from .vision import VisionEncoder


class Cut(TypedDict):
    """Tiling options, as preprocess.py takes them."""

    max_tiles: int
    use_thumbnail: bool


class ImageEncoder:
    """Encodes one image at a time. Its ring is created with the first image, since many streams never get one.

    max_tiles None uses the model's setting.
    """

    def __init__(self, sessions: Mapping[str, Session], manifest: Manifest) -> None:
        self._sessions, self._spec = sessions, manifest.images
        self._fixed_time = manifest.time_mode == "fixed"
        self._size, self._tokens = manifest.shape.image_size, manifest.shape.num_frame_tokens
        self._width = manifest.shape.llm_width
        self._encoder: VisionEncoder | None = None

    def num_rows(self, image_bgr: Array, *, max_tiles: int | None) -> int:
        """LLM rows that an image, or its encoding, takes. Raises FrameError for anything but (H, W, 3) uint8."""
        if self._is_encoded(image_bgr):
            return len(image_bgr)
        count = num_tiles(image_bgr, size=self._size, **self._cut(max_tiles))
        return count * self._spec.num_repeats * self._tokens

    def encode(self, image_bgr: Array, *, max_tiles: int | None) -> Array:
        """(H, W, 3) uint8 BGR of any size -> (rows, E); an encoded image is returned unchanged.

        Raises FrameError, and NonFiniteError as for a frame.
        """
        if self._is_encoded(image_bgr):
            return image_bgr
        tiles = to_tiles(image_bgr, size=self._size, **self._cut(max_tiles))
        if self._encoder is None:
            self._encoder = VisionEncoder(self._sessions)
        in_time = self._spec.layout == "tiles_in_time"
        if self._fixed_time:  # t / T, T the frames of this static video
            self._encoder.time_divisor = self._spec.num_repeats * (len(tiles) if in_time else 1)
        embeds = []
        for index, tile in enumerate(tiles):
            if index == 0 or not in_time:
                self._encoder.reset()
            embeds.append(self._encoder.encode_static(tile, num_repeats=self._spec.num_repeats))
        return np.concatenate(embeds)

    def _is_encoded(self, image: Array) -> bool:
        """Whether it is already encoded: rows of embeddings are floats; a grey image is not."""
        return isinstance(image, np.ndarray) and bool(image.dtype.kind != "u" and image.shape[1:] == (self._width,))

    def _cut(self, max_tiles: int | None) -> Cut:
        most = self._spec.max_tiles if max_tiles is None else max_tiles
        return {"max_tiles": most, "use_thumbnail": self._spec.use_thumbnail}
