"""Anti-aliased drawing of a scene, and labels for every patch.

Positions are fractions of the frame, so that a frame of any size shows the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from .backgrounds import Image
from .world import CHARACTERS, COLORS, SHAPES, Card, Floats, Scene, Thing, outline

Mask = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]
IGNORED = -100
"""Label without a target: the default ignore_index of torch's cross_entropy."""
SUB_PIXEL = 4  # fractional bits of OpenCV's coordinates
MOTIONS = ("none", "left", "right", "up", "down", "still")
_LABEL_CELLS = 8  # samples along a side of a patch
_GLYPH_HEIGHT = 48
MIN_CODE_WIDTH = 0.31  # of the frame: characters of 11 by 17 pixels in a 112 px frame
MAX_BARE_SPREAD = 22.0  # standard deviation of brightness behind a code without paper


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchLabels:
    """Content of each patch of each frame, (T, grid * grid) int64; 0 is nothing, IGNORED is a borderline case.

    color, shape  1 + index in COLORS, SHAPES
    motion        index in MOTIONS, from this frame and earlier ones; IGNORED in a thing's first frame
    character     1 + index in CHARACTERS
    """

    color: Labels
    shape: Labels
    motion: Labels
    character: Labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Print:
    """Look of a card: position, paper (None: printed directly on the background), ink and glyph shapes.

    boxes  (num_codes, 4) x0, y0, x1, y1 of each code
    """

    boxes: Floats
    paper: tuple[int, int, int] | None
    ink: tuple[int, int, int]
    font: int
    bold: bool


def draw_frame(background: Image, scene: Scene, print_: Print | None, frame_index: int) -> Image:
    """Draw one frame (S, S, 3) uint8 RGB on a copy of the background, whose size S it has."""
    frame = background.copy()
    for thing in scene.visible(frame_index):
        _draw_thing(frame, thing, thing.centers[frame_index], thing.rgb)
    if scene.card is not None and print_ is not None:
        _draw_card(frame, scene.card, print_)
    return frame


def _draw_thing(frame: Any, thing: Thing, center: Floats, color: Any) -> None:
    scale = frame.shape[0] * 2**SUB_PIXEL
    smooth = cv2.LINE_AA if frame.ndim == 3 else cv2.LINE_8
    points = outline(thing, center)
    if points is None:
        x, y = (int(round(value * scale)) for value in center)
        cv2.circle(frame, (x, y), int(round(thing.radius * 0.92 * scale)), color, -1, smooth, shift=SUB_PIXEL)
    else:
        cv2.fillPoly(frame, [np.rint(points * scale).astype(np.int32)], color, smooth, shift=SUB_PIXEL)


# -- cards -----------------------------------------------------------------------------------------------------


def sample_print(rng: np.random.Generator, card: Card, background: Image) -> Print:
    """Draw a legible look for a card: high contrast of ink and ground, and paper unless the background is even."""
    aspect = 3 * 0.62  # width by height of three glyphs
    cells = {1: [(0.5, 0.5)], 2: [(0.26, 0.5), (0.74, 0.5)],
             4: [(0.26, 0.27), (0.74, 0.27), (0.26, 0.73), (0.74, 0.73)]}[len(card.codes)]  # fmt: skip
    widest = 0.8 if len(card.codes) == 1 else 0.43
    boxes = []
    shared = rng.uniform(MIN_CODE_WIDTH, widest)
    for x, y in cells:
        width = shared if len(card.codes) > 1 else rng.uniform(MIN_CODE_WIDTH, widest)
        height = min(width / aspect * rng.uniform(0.9, 1.25), 0.4)
        wiggle_x = max(0.0, (0.47 if len(card.codes) > 1 else 0.94) - width) / 2
        wiggle_y = max(0.0, (0.44 if len(card.codes) == 4 else 0.9) - height) / 2 * (0.5 if len(card.codes) == 2 else 1)
        cx, cy = x + rng.uniform(-wiggle_x, wiggle_x), y + rng.uniform(-wiggle_y, wiggle_y)
        boxes.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    bare = rng.random() < 0.6 and float(background.mean(-1).std()) < MAX_BARE_SPREAD
    ground = (
        background.mean((0, 1))
        if bare
        else np.full(3, rng.choice([rng.uniform(170, 250), rng.uniform(0, 60)], p=[0.8, 0.2]))
    )
    dark = ground.mean() > 118
    ink = rng.uniform(0, 55, 3) if dark else rng.uniform(200, 255, 3)
    if rng.random() < 0.25:  # a coloured pen
        ink = np.clip(ink + rng.uniform(-1, 1, 3) * 60, 0, 255)
    paper = None if bare else _rgb(ground + rng.uniform(-12, 12, 3))
    return Print(
        boxes=np.asarray(boxes),
        paper=paper,
        ink=_rgb(ink),
        font=int(rng.integers(NUM_FONTS)),
        bold=rng.uniform(0.0, 1.0) > 0.5,
    )


def _rgb(values: Any) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(value, 0, 255)) for value in values)
    return r, g, b


def _draw_card(frame: Image, card: Card, print_: Print) -> None:
    size = frame.shape[0]
    if print_.paper is not None:
        margin = 0.035
        x0, y0 = np.floor((print_.boxes[:, :2].min(0) - margin) * size).astype(int)
        x1, y1 = np.ceil((print_.boxes[:, 2:].max(0) + margin) * size).astype(int)
        frame[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = print_.paper
    for code, box in zip(card.codes, print_.boxes, strict=True):
        for character, (x0, y0, x1, y1) in zip(code, character_boxes(box), strict=True):
            _blend(frame, glyph(character, print_.font, print_.bold), (x0, y0, x1, y1), print_.ink)


def character_boxes(box: Floats) -> Floats:
    """Boxes (3, 4) of the three characters in a code's box, from left to right."""
    edges = np.linspace(box[0], box[2], 4)
    return np.stack([edges[:-1], np.full(3, box[1]), edges[1:], np.full(3, box[3])], axis=-1)


def _blend(frame: Image, mask: Mask, box: tuple[float, float, float, float], ink: tuple[int, int, int]) -> None:
    """Blend ink into a frame through a mask stretched to a box, with sub-pixel precision."""
    size = frame.shape[0]
    x0, y0, x1, y1 = (value * size for value in box)
    left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    right, bottom = min(int(np.ceil(x1)), size), min(int(np.ceil(y1)), size)
    if right <= left or bottom <= top:
        return
    height, width = mask.shape
    to_frame = np.array([[(x1 - x0) / width, 0, x0 - left], [0, (y1 - y0) / height, y0 - top]], dtype=np.float32)
    shrunk = cv2.GaussianBlur(mask, (0, 0), max(0.35 * height / max(y1 - y0, 1.0), 0.01))  # before it is sampled
    cover = cv2.warpAffine(shrunk, to_frame, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    share = cover[..., None].astype(np.float32) / 255.0
    patch = frame[top:bottom, left:right]
    patch[:] = np.rint(patch + (np.asarray(ink, dtype=np.float32) - patch) * share).astype(np.uint8)


_HERSHEY = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
NUM_FONTS = 2 + len(_HERSHEY)  # Pillow's font twice, normal and narrow


@cache
def glyph(character: str, font: int, bold: bool) -> Mask:  # noqa: FBT001  (a cache key)
    """Coverage (48, n) uint8 of one character, cropped to its ink and padded."""
    if font < 2:
        canvas = PILImage.new("L", (120, 120))
        face = ImageFont.load_default(size=64)
        ImageDraw.Draw(canvas).text((30, 20), character, fill=255, font=face, stroke_width=2 if bold else 0)
        ink: Any = np.array(canvas, dtype=np.uint8)
    else:
        ink = np.zeros((120, 120), dtype=np.uint8)
        cv2.putText(ink, character, (30, 85), _HERSHEY[font - 2], 2.2, 255, 6 if bold else 4, cv2.LINE_AA)
    rows, columns = np.flatnonzero(ink.max(1)), np.flatnonzero(ink.max(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = _GLYPH_HEIGHT * 3 // 4
    width = max(int(round(ink.shape[1] * height / ink.shape[0] * (0.8 if font == 1 else 1.0))), 4)
    ink = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)
    # All characters get the same box width, so that a 1 stays narrow.
    full = int(height * 0.78)
    side = max((full - width) // 2, 0) + _GLYPH_HEIGHT // 12
    rise = (_GLYPH_HEIGHT - height) // 2
    return np.pad(ink, ((rise, rise), (side, side)))


# -- labels ----------------------------------------------------------------------------------------------------


def patch_labels(scene: Scene, print_: Print | None, *, grid: int) -> PatchLabels:
    """Label every frame of a scene, for grid x grid patches."""
    shape = (scene.num_frames, grid * grid)
    labels = PatchLabels(
        **{name: np.zeros(shape, dtype=np.int64) for name in ("color", "shape", "motion", "character")}
    )
    for frame_index in range(scene.num_frames):
        _label_things(labels, scene, frame_index, grid)
    if scene.card is not None and print_ is not None:
        labels.character[:] = _label_characters(scene.card, print_, grid)
    return labels


def _label_things(labels: PatchLabels, scene: Scene, frame_index: int, grid: int) -> None:
    canvas = np.zeros((grid * _LABEL_CELLS, grid * _LABEL_CELLS), dtype=np.uint8)
    visible = scene.visible(frame_index)
    for index, thing in enumerate(visible, start=1):
        _draw_thing(canvas, thing, thing.centers[frame_index], index)
    cells = canvas.reshape(grid, _LABEL_CELLS, grid, _LABEL_CELLS)
    for index, thing in enumerate(visible, start=1):
        share = (cells == index).mean((1, 3)).ravel()
        inside, border = share >= 0.3, (share > 0.04) & (share < 0.3)
        motion = thing.action if thing.action in MOTIONS else "still"
        is_new = frame_index == thing.first
        for array, value in (
            (labels.color, 1 + list(COLORS).index(thing.color)),
            (labels.shape, 1 + SHAPES.index(thing.shape)),
            (labels.motion, IGNORED if is_new else MOTIONS.index(motion)),
        ):
            array[frame_index, inside] = value
            array[frame_index, border & (array[frame_index] == 0)] = IGNORED


def _label_characters(card: Card, print_: Print, grid: int) -> Labels:
    """Label (grid * grid,) patches with the character of largest overlap, relative to the smaller of the two areas."""
    low, high = np.arange(grid) / grid, np.arange(1, grid + 1) / grid
    best, label = np.zeros((grid, grid)), np.zeros((grid, grid), dtype=np.int64)
    for code, box in zip(card.codes, print_.boxes, strict=True):
        for character, (x0, y0, x1, y1) in zip(code, character_boxes(box), strict=True):
            wide = np.clip(np.minimum(high, x1) - np.maximum(low, x0), 0, None)
            tall = np.clip(np.minimum(high, y1) - np.maximum(low, y0), 0, None)
            overlap = tall[:, None] * wide[None] / min(1 / grid**2, (x1 - x0) * (y1 - y0))
            better = overlap > best
            best = np.where(better, overlap, best)
            label = np.where(better, 1 + CHARACTERS.index(character), label)
    return np.where(best >= 0.5, label, np.where(best > 0.08, IGNORED, 0)).ravel()
