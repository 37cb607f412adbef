"""Rendered clips over codecs, depths, ranges, matrices, curves, orientations and scan types, and their reading errors.

Note: the truth is flat patches of RGB. The file's values are computed here, in numpy and with the formulas of the
standards, and encoded losslessly if the codec can. Nothing of the reader is used for them.

As a program it prints the table of docs/video.md: python -m tests.engines.video.colours
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from apps.addresses import parse_address
from apps.videos import VideoDevice
from engines.video import probe_video, read_video

KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
MATRIX_NAMES = {1: "BT.709", 6: "BT.601", 9: "BT.2020"}
CURVES = {1: "SDR", 16: "PQ", 18: "HLG"}
PATCH, ROWS, COLUMNS = 32, 2, 4
NUM_FRAMES = 3
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
LIMIT_SDR, LIMIT_HDR = 2.0, 8.0
ORIENTATIONS = {  # a, b, c, d of the display matrix, and numpy's operation for the same result
    "upright": ((1, 0, 0, 1), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "180": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "90 clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "90 counter-clockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "transposed": ((0, 1, 1, 0), lambda p: np.swapaxes(p, 0, 1)),
    "anti-transposed": ((0, -1, -1, 0), lambda p: np.swapaxes(np.rot90(p, 2), 0, 1)),
}
ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "H.264": ("libx264", {"qp": "0"}),
    "HEVC": ("libx265", {"x265-params": "lossless=1:log-level=none"}),
    "VP9": ("libvpx-vp9", {"lossless": "1"}),
    "AV1": ("libsvtav1", {"crf": "1", "preset": "8"}),
    "MPEG-2": ("mpeg2video", {"qmin": "1", "qmax": "1"}),
    "MJPEG": ("mjpeg", {"qmin": "1", "qmax": "1"}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """matrix: of the pixels, declared in the file if `tags`. primaries: 9 is BT.2020."""

    codec: str
    layout: str = "yuv420p"
    is_full: bool = False
    matrix: int = 1
    curve: int = 1
    primaries: int = 1
    tags: bool = True
    is_hd: bool = False
    is_interlaced: bool = False
    orientation: str = "upright"

    @property
    def depth(self) -> int:
        return 12 if "12" in self.layout else 10 if "10" in self.layout else 8

    @property
    def limit(self) -> float:
        return LIMIT_HDR if self.curve in (16, 18) else LIMIT_SDR

    def __str__(self) -> str:
        said = MATRIX_NAMES[self.matrix] + ("" if self.tags else " unsaid")
        size = "1280x720" if self.is_hd else f"{COLUMNS * PATCH}x{ROWS * PATCH}"
        wide = " in BT.2020's primaries" if self.primaries == 9 and self.curve == 1 else ""
        scan = "interlaced" if self.is_interlaced else "progressive"
        levels = "full" if self.is_full else "limited"
        return " | ".join(
            (self.codec, f"{self.layout}, {size}", levels, said, CURVES[self.curve] + wide, scan, self.orientation)
        )


def clips() -> list[Clip]:
    """The 38 clips."""
    h264, hevc, av1 = Clip(codec="H.264"), Clip(codec="HEVC", layout="yuv420p10le"), Clip(codec="AV1")
    vp9, mpeg2, mjpeg = Clip(codec="VP9"), Clip(codec="MPEG-2"), Clip(codec="MJPEG", layout="yuvj420p", is_full=True)
    pq, hlg = {"matrix": 9, "primaries": 9, "curve": 16}, {"matrix": 9, "primaries": 9, "curve": 18}
    deep: dict[str, Any] = {"layout": "yuv420p10le"}
    return [
        h264, replace(h264, matrix=6), replace(h264, matrix=9), replace(h264, is_full=True),
        replace(h264, is_full=True, matrix=6), replace(h264, tags=False, matrix=6),
        replace(h264, tags=False, is_hd=True), replace(h264, layout="yuv444p"), replace(h264, layout="yuv422p10le"),
        replace(h264, **deep), replace(h264, is_interlaced=True), replace(h264, is_interlaced=True, matrix=6),
        *(replace(h264, orientation=name) for name in list(ORIENTATIONS)[1:]),
        replace(hevc, layout="yuv420p"), hevc, replace(hevc, layout="yuv444p12le", is_full=True),
        replace(hevc, matrix=9, primaries=9), replace(hevc, **pq), replace(hevc, **hlg),
        replace(hevc, layout="yuv444p10le", **hlg), replace(hevc, orientation="90 clockwise", **pq),
        vp9, replace(vp9, is_full=True, matrix=6), replace(vp9, **hlg),
        av1, replace(av1, **deep), replace(av1, **deep, **pq), replace(av1, **deep, **hlg),
        replace(mpeg2, tags=False, matrix=6), replace(mpeg2, is_interlaced=True),
        replace(mjpeg, matrix=6), replace(mjpeg, matrix=6, is_hd=True),
    ]  # fmt: skip


def patches() -> np.ndarray:
    """(ROWS, COLUMNS, 3) RGB of 0..255: greys, the demo's yellow, and colours that a wrong matrix changes strongly."""
    return np.array(
        [
            [(236, 208, 13), (255, 255, 255), (128, 128, 128), (0, 0, 0)],
            [(200, 40, 40), (40, 160, 60), (50, 60, 190), (210, 150, 120)],
        ]
    )


def encode(clip: Clip, path: Path) -> None:
    """Render and encode a clip of flat patches."""
    import av

    name, options = ENCODERS[clip.codec]
    planes = planes_of(clip)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=25, options=dict(options))
        height, width = planes[0].shape
        stream.width, stream.height, stream.pix_fmt = width, height, clip.layout
        context = stream.codec_context
        if clip.tags:
            context.colorspace, context.color_primaries, context.color_trc = clip.matrix, clip.primaries, clip.curve
        context.color_range = 2 if clip.is_full else 1
        if clip.is_interlaced:
            context.flags |= 1 << 29 | 1 << 18  # interlaced motion estimation and DCT
        if clip.orientation != "upright":
            (a, b, c, d), _ = ORIENTATIONS[clip.orientation]
            stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame(width, height, clip.layout)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.frombuffer(plane, values.dtype).reshape(plane.height, -1)
                rows[:, : plane.width] = values
            frame.pts, frame.time_base = index, Fraction(1, 25)
            if clip.is_interlaced:
                frame = marked_interlaced(frame)
            frame.color_range = context.color_range
            if clip.tags:
                frame.colorspace, frame.color_primaries, frame.color_trc = clip.matrix, clip.primaries, clip.curve
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def marked_interlaced(frame: Any) -> Any:
    """The same frame, declared as two fields, top field first."""
    import av

    graph = av.filter.Graph()
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
    )
    graph.link_nodes(buffer, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def planes_of(clip: Clip) -> list[np.ndarray]:
    """Y, Cb and Cr of the patches as whole numbers, with the BT.601, BT.709 or BT.2020 matrix, chroma subsampled."""
    red, green, blue = np.moveaxis(placed(patches() / 255, clip), -1, 0)
    kr, kb = KR_KB[clip.matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = ((blue - luma) / 2 / (1 - kb), (red - luma) / 2 / (1 - kr))
    top, unit = 2**clip.depth - 1, 2 ** (clip.depth - 8)
    if clip.is_full:
        values = [luma * top, *(one * top + (top + 1) / 2 for one in chroma)]
    else:
        values = [(16 + 219 * luma) * unit, *((128 + 224 * one) * unit for one in chroma)]
    height, width = (720, 1280) if clip.is_hd else (ROWS * PATCH, COLUMNS * PATCH)
    dtype = np.uint16 if clip.depth > 8 else np.uint8
    planes = [np.kron(one, np.ones((height // ROWS, width // COLUMNS))) for one in values]
    across, down = (1 if "444" in clip.layout else 2), (2 if "420" in clip.layout else 1)
    planes = [planes[0], *(plane[::down, ::across] for plane in planes[1:])]
    return [np.clip(np.rint(plane), 0, top).astype(dtype) for plane in planes]


def placed(rgb: np.ndarray, clip: Clip) -> np.ndarray:
    """Convert an SDR picture (..., 3) of 0..1 to the clip's primaries and curve, with SDR's white as in BT.2408.

    sRGB's curve to linear light, BT.709's primaries to BT.2020's, white at 203 cd/m2 of PQ or at 75 % of HLG.
    """
    if clip.primaries != 9:
        return rgb
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ TO_BT2020.T
    if clip.curve == 16:
        powered = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * powered) / (1 + 18.6875 * powered)) ** 78.84375
    if clip.curve == 18:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = light * (np.exp((0.75 - c) / a) + b) / 12
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def worst_errors(clip: Clip, path: Path) -> dict[str, float]:
    """For each command, the largest mean absolute error per channel, of 255 levels, inside a patch of any frame."""
    device = VideoDevice(parse_address(str(path)), wait=lambda seconds: False)
    live = [shown.bgr for shown in iter(device.read, None)]
    device.close()
    info = probe_video(path)
    return {
        "run": max(worst_error(clip, frame.bgr) for frame in read_video(path)),
        "pvc-live": max(worst_error(clip, bgr) for bgr in live),
        "frames": float(len(live) == info.num_frames == NUM_FRAMES),
    }


def worst_error(clip: Clip, bgr: np.ndarray) -> float:
    height, width = (720, 1280) if clip.is_hd else (ROWS * PATCH, COLUMNS * PATCH)
    _, turn = ORIENTATIONS[clip.orientation]
    truth = turn(np.kron(patches()[..., ::-1], np.ones((height // ROWS, width // COLUMNS, 1))))
    which = turn(np.kron(np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS), np.ones((height // ROWS, width // COLUMNS))))
    inside = turn(np.kron(np.ones((ROWS, COLUMNS)), margin(height // ROWS, width // COLUMNS))) > 0
    assert bgr.shape == truth.shape, (bgr.shape, truth.shape)
    error = np.abs(bgr - truth)
    return max(float(error[inside & (which == patch)].mean(axis=0).max()) for patch in range(ROWS * COLUMNS))


def margin(height: int, width: int) -> np.ndarray:
    """1 inside a patch, 0 within 8 pixels of its edge, where the chroma of both sides mixes."""
    inner = np.zeros((height, width))
    inner[8:-8, 8:-8] = 1
    return inner


def main() -> None:
    print("| codec | pixels | range | matrix | curve | scan | orientation | `run` | `pvc-live` | limit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips():
            path = Path(folder) / "clip.mkv" if clip.orientation == "upright" else Path(folder) / "clip.mp4"
            encode(clip, path)
            errors = worst_errors(clip, path)
            print(f"| {clip} | {errors['run']:.2f} | {errors['pvc-live']:.2f} | {clip.limit:.0f} |")


if __name__ == "__main__":
    main()
