"""Converts a decoded frame to the picture its author meant: colours, scan and orientation.

Note: the file's colour tags are trusted; without tags, matrix and range are guessed as players do.
Sources: ITU-R BT.601, BT.709, BT.2020 (matrices, by FFmpeg's swscale), BT.2100 (PQ and HLG), BT.2087 (BT.2020 to BT.709
primaries), BT.2408 (position of SDR white in HDR), IEC 61966-2-1 (sRGB, the curve of the pictures models are trained
on). Works on PyAV's frames; PyAV is imported inside the functions.
"""

from __future__ import annotations

import importlib
from collections import deque
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

HDR_WHITE_NITS, HLG_WHITE = 203.0, 0.75
"""Diffuse white of HDR, which maps to SDR white: cd/m2 for PQ, signal level for HLG. BT.2408, table 1."""
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # BT.2087, linear RGB of BT.2020's primaries
# Numbers from ISO/IEC 23091-2, as FFmpeg and PyAV use them.
BT709, UNSPECIFIED, BT601, BT2020 = 1, 2, 5, 9
PQ, HLG = 16, 18
LIMITED, FULL = 1, 2
# Maps each to a matrix that swscale accepts through PyAV, which reads others as "the frame's": FCC is 4, SMPTE 240M 7.
MATRICES = {BT709: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, BT2020: BT2020, 10: BT2020}
HD_LINES, HD_COLUMNS = 720, 1280
ENCODING_STEPS = 16384
EXACTLY = 0x2 | 0x2000 | 0x40000
"""swscale's flags bilinear, full_chroma_int and accurate_rnd, as numbers: PyAV 17 has no name for the last one."""
WHITE_CODE = 255 * 256  # swscale's 16-bit code for white

Picture = NDArray[np.uint8]


def to_bgr(frame: Any, orientation: NDArray[np.int32] | None = None) -> Picture:
    """A progressive av.VideoFrame -> (H, W, 3) uint8 BGR, upright, C-contiguous; the caller owns it.

    Matrix and range are the frame's. If it states none: BT.2020 with PQ, HLG or BT.2020 primaries, BT.709 from 720
    lines or 1280 columns up, otherwise BT.601. PQ and HLG become SDR as in BT.2408: 203 cd/m2 is white and brighter
    values are clipped. BT.2020 primaries become BT.709's. `orientation` is a display matrix; None uses the frame's.
    """
    is_wide = frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020
    bgr = _wide_to_bgr(frame) if is_wide else _converted(frame, "bgr24")
    return turned(bgr, display_matrix(frame) if orientation is None else orientation)


def display_matrix(frame: Any) -> NDArray[np.int32] | None:
    """The frame's display matrix (3, 3), which says how to rotate and flip it; None if it is upright."""
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)
    return None


def turned(bgr: Picture, matrix: NDArray[np.int32] | None) -> Picture:
    """Apply a display matrix [[a, b, .], [c, d, .], ...], which maps (x, y) to (a x + c y, b x + d y).

    Flips, transposes and quarter turns: 8 orientations; any other angle becomes the nearest of these.
    """
    if matrix is not None:
        (a, b), (c, d) = matrix[:2, :2].astype(int)
        if max(abs(b), abs(c)) > max(abs(a), abs(d)):
            bgr, to_right, downwards = bgr.transpose(1, 0, 2), c, b
        else:
            to_right, downwards = a, d
        bgr = bgr[:: -1 if downwards < 0 else 1, :: -1 if to_right < 0 else 1]
    return np.ascontiguousarray(bgr)


class Deinterlacer:
    """Turns interlaced frames into as many progressive ones, with FFmpeg's bwdif. Progressive frames pass unchanged
    until the first interlaced one.

    bwdif also looks at the next frame, so results come one frame late: call `flush` after the last.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._layout: tuple[Any, ...] = ()
        self._waiting: deque[Any] = deque()

    def push(self, frame: Any) -> list[tuple[Any, Any]]:
        """Return pairs: a decoded frame, for its metadata, and its progressive version, for its pixels."""
        layout = (frame.width, frame.height, frame.format.name)
        done = self.flush() if self._graph is not None and layout != self._layout else []
        if self._graph is None:
            if not frame.interlaced_frame:
                return [*done, (frame, frame)]
            self._start(frame, layout)
        self._waiting.append(frame)
        self._graph.push(frame)
        return [*done, *self._pull()]

    def flush(self) -> list[tuple[Any, Any]]:
        if self._graph is None:
            return []
        self._graph.push(None)
        done = self._pull()
        self._graph = None
        self._waiting.clear()
        return done

    def _start(self, frame: Any, layout: tuple[Any, ...]) -> None:
        av = importlib.import_module("av")
        width, height, name = layout
        self._layout, self._graph = layout, av.filter.Graph()
        buffer = self._graph.add_buffer(
            width=width, height=height, format=name, time_base=frame.time_base or Fraction(1, 1000)
        )
        bwdif = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        sink = self._graph.add("buffersink")
        buffer.link_to(bwdif)
        bwdif.link_to(sink)
        self._graph.configure()

    def _pull(self) -> list[tuple[Any, Any]]:
        av = importlib.import_module("av")
        done = []
        while self._waiting:
            try:
                progressive = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            done.append((self._waiting.popleft(), progressive))
        return done


def to_yuv(frame: Any, layout: str, matrix: int) -> Any:
    """Convert an RGB or BGR av.VideoFrame to a YUV layout of limited range, rounding to nearest."""
    return frame.reformat(
        format=layout, dst_colorspace=matrix, src_color_range=FULL, dst_color_range=LIMITED, interpolation=EXACTLY
    )


def untagged_matrix(width: int, height: int) -> int:
    """Colour matrix assumed for a video without a tag: BT.709 in HD, BT.601 below it."""
    return BT709 if height >= HD_LINES or width >= HD_COLUMNS else BT601


def _converted(frame: Any, layout: str) -> NDArray[Any]:
    """Undo matrix and range, with chroma at full resolution: within 1 of 255 levels of the formula."""
    converted = frame.reformat(
        format=layout,
        src_colorspace=_matrix(frame),
        dst_colorspace=BT709,
        src_color_range=_range(frame),
        dst_color_range=FULL,
        interpolation=EXACTLY,
    )
    array: NDArray[Any] = converted.to_ndarray()
    return array


def _matrix(frame: Any) -> int:
    if frame.colorspace in MATRICES:
        return MATRICES[int(frame.colorspace)]
    if frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020:
        return BT2020
    return untagged_matrix(frame.width, frame.height)


def _range(frame: Any) -> int:
    if frame.color_range in (LIMITED, FULL):
        return int(frame.color_range)
    name = frame.format.name
    is_full = frame.format.is_rgb or name.startswith(("yuvj", "gray", "ya", "mono", "pal"))
    return FULL if is_full else LIMITED


def _wide_to_bgr(frame: Any) -> Picture:
    """BT.2020 primaries, PQ, HLG or SDR -> BT.709 SDR, through linear light in which SDR white is 1.

    For HLG this is scene light, without a display's system gamma: SDR has its own (BT.2408, 5.1.3.2).
    """
    # Planar, because swscale 9.5 computes wrong green and blue for packed rgb48 from 4:2:0.
    light = _light_of_codes(int(frame.color_trc))[_converted(frame, "gbrp16le")]
    if frame.color_primaries in (BT2020, UNSPECIFIED):
        light = light @ TO_BT709.T
    np.clip(light, 0, 1, out=light)
    np.sqrt(light, out=light)
    light *= ENCODING_STEPS - 1
    bgr: Picture = _sdr_of_light_roots()[(light + 0.5).astype(np.uint16)][..., ::-1]
    return bgr


@lru_cache(maxsize=3)
def _light_of_codes(transfer: int) -> NDArray[np.float32]:
    """Linear light of each 16-bit code."""
    signal = np.minimum(np.arange(65536) / WHITE_CODE, 1)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = 10000 / HDR_WHITE_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    elif transfer == HLG:
        light = _hlg_scene(signal) / _hlg_scene(np.array(HLG_WHITE))
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _hlg_scene(signal: NDArray[Any]) -> NDArray[Any]:
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


@lru_cache(maxsize=1)
def _sdr_of_light_roots() -> Picture:
    """sRGB code for each square root of light. Roots sample dark tones finely enough: 0.03 levels apart."""
    light = (np.arange(ENCODING_STEPS) / (ENCODING_STEPS - 1)) ** 2
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (signal * 255 + 0.5).astype(np.uint8)
