"""Reads picture files through Pillow: upright, on white, as frames (H, W, 3) uint8 BGR.

Note: Pillow's warnings are collected and passed on as sentences instead of printed raw. HEIC needs the package
pillow-heif, which is imported when the first HEIC file is opened.
"""

from __future__ import annotations

import importlib
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import __version__ as PILLOW_VERSION

from .errors import BackendUnavailable, MediaError

ON_WHITE = "its transparent parts are shown on white"
ANIMATED_FORMATS = frozenset(("GIF", "WEBP", "PNG", "AVIF"))
"""In these formats several frames are a video. In others they are pages (TIFF), or a preview and a depth map (MPO)."""
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
MEGA = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A decoded picture. bgr: (H, W, 3) uint8. notices: what the user should know about how it was read."""

    bgr: NDArray[np.uint8]
    notices: tuple[str, ...] = ()


def read_picture(path: str | Path) -> Picture:
    """Read a still picture, upright according to its metadata, transparency on white.

    Raises MediaError for a file that is missing, truncated, not a picture, a video, over Pillow's size limit, or has
    more than 8 bits per channel; BackendUnavailable for HEIC without pillow-heif.
    """
    path = Path(path)
    notices: list[str] = []
    with opened(path, notices) as image:
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1 and image.format in ANIMATED_FORMATS:
            raise MediaError(
                f"{path} is a video: an animated {image.format} of {num_frames} frames",
                expected="a still picture",
                fix=f"--video {path}",
            )
        if num_frames > 1 and image.format == "TIFF":
            notices.append(f"only the first of {num_frames} pages is read")
        bgr, is_transparent = to_bgr(image, path)
    return Picture(bgr=bgr, notices=(*([ON_WHITE] if is_transparent else []), *notices))


@contextmanager
def opened(path: Path, notices: list[str]) -> Iterator[Image.Image]:
    """Open a picture without decoding it. Inside, Pillow's errors become MediaErrors (see `explained`). Raises what
    read_picture raises."""
    if path.is_dir() or not path.exists():
        what, cause = ("is a folder", "a folder of frames") if path.is_dir() else ("does not exist", "a typing error")
        fix = f"--video {path}" if path.is_dir() else f"ls {path.parent}"
        raise MediaError(f"{path} {what}", expected="an image file, such as JPEG or PNG", cause=cause, fix=fix)
    with explained(path, notices):
        _prepare_for(path)
        with Image.open(path) as image:
            yield image


@contextmanager
def explained(path: Path, notices: list[str]) -> Iterator[None]:
    """Inside, Pillow's errors become MediaErrors that name the actual cause, and its warnings become notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Image.DecompressionBombError as error:
            raise _too_large(path, str(error)) from error
        except UnidentifiedImageError as error:
            raise _no_picture(path) from error
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
            raise MediaError(
                f"{path} cannot be read as an image: {error}",
                expected="a complete image file, such as JPEG or PNG",
                cause="it is truncated or damaged",
                fix=f"fetch it again, and check its size: ls -l {path}",
            ) from error
    # A large picture is not an attack: below the size at which Pillow raises, it is read without a notice.
    said = (str(one.message) for one in caught if not issubclass(one.category, Image.DecompressionBombWarning))
    notices += [f"Pillow warns: {text}" for text in said]


def to_bgr(image: Image.Image, path: Path | str) -> tuple[NDArray[np.uint8], bool]:
    """The frame of an open picture, (H, W, 3) uint8 BGR, and whether any part of it was transparent.

    Raises MediaError for more than 8 bits per channel, and Pillow's own errors.
    """
    if image.mode.startswith(("I", "F")):
        raise MediaError(
            f"{path} has pixels of mode '{image.mode}', 16 or 32 bits per channel; values above 255 would be clipped",
            expected="8 bits per channel",
            cause="it is probably a depth or infrared image",
            fix="scale it to 0..255 first",
        )
    image = ImageOps.exif_transpose(image)
    is_transparent = False
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        lowest, _ = rgba.getextrema()[3]  # type: ignore[misc]
        is_transparent = lowest < 255
        # White, like paper and web pages: text without a background is mostly black.
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]), is_transparent


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of to_bgr's result, without decoding where possible."""
    # A PNG whose EXIF follows its pixels would have to be decoded to read it; writers put EXIF before them.
    known = image.format != "PNG" or "exif" in image.info
    turned = known and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    if turned and image.format == "TIFF":  # Pillow rotates it itself, when depends on the version
        image.load()
        return image.size
    return (image.height, image.width) if turned else image.size


def _prepare_for(path: Path) -> None:
    """Register pillow-heif, once, if this is a HEIC file. Raises BackendUnavailable if it is not installed."""
    brands = _brands(path)
    if not brands & HEIF_BRANDS or brands & AVIF_BRANDS or "HEIF" in Image.OPEN:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise BackendUnavailable(
            f"{path} is a HEIC picture, which Pillow cannot read without the package pillow-heif",
            expected="JPEG, PNG or another format that Pillow reads by itself",
            cause="phones save HEIC unless set to save JPEG ('most compatible')",
            fix="pip install -e '.[heif]', or convert it to JPEG",
        ) from error


def _brands(path: Path) -> frozenset[bytes]:
    """The major and compatible brands in the header of an ISO media file (MP4, HEIC, AVIF); empty for other files."""
    with path.open("rb") as file:
        start = file.read(256)
    if start[4:8] != b"ftyp":
        return frozenset()
    box = start[8 : int.from_bytes(start[:4], "big")]
    return frozenset(box[at : at + 4] for at in range(0, len(box), 4) if at != 4)  # at 4 is a version


def _no_picture(path: Path) -> MediaError:
    expected = "an image file, such as JPEG or PNG"
    if path.stat().st_size == 0:
        cause, fix = "it is empty (0 bytes): a download or copy failed", "fetch it again"
    elif (brands := _brands(path)) & AVIF_BRANDS:
        cause, fix = f"it is AVIF, which needs Pillow 11.3 or later; this is {PILLOW_VERSION}", "pip install -U pillow"
    elif brands:
        cause, fix = "its first bytes are those of a video", f"--video {path}"
    else:
        cause, fix = f"it is not an image, or Pillow {PILLOW_VERSION} does not know its format", f"file {path}"
    return MediaError(f"{path} cannot be read as an image", expected=expected, cause=cause, fix=fix)


def _too_large(path: Path, said: str) -> MediaError:
    """Pillow gives the size only in its message: 'Image size (N pixels) exceeds limit of M pixels, ...'."""
    size, limit = (f"{int(number) / MEGA:.0f}" for number in re.findall(r"\d+", said)[:2])
    return MediaError(
        f"{path} has {size} megapixels",
        expected=f"at most {limit}, Pillow's limit; the model sees far fewer",
        cause="it is a photo from a 200-megapixel camera, a panorama or a scan; or a file crafted to fill the memory",
        fix=f"make it smaller first: ffmpeg -i {path} -vf scale=iw/4:-1 smaller{path.suffix}",
    )
