"""Pictures in files, through Pillow: upright, on white, as frames (H, W, 3) uint8 BGR.

Note: Pillow's warnings are collected and handed on as sentences, so that none is printed raw; and HEIC is read only
where the package pillow-heif is installed, which is imported when the first such file is met.
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
"""Of these, several frames are a video. Elsewhere they are pages (TIFF), or a preview and a depth map (MPO)."""
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
MEGA = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A decoded picture. bgr: (H, W, 3) uint8. notices: what a person should know of how it was read."""

    bgr: NDArray[np.uint8]
    notices: tuple[str, ...] = ()


def read_picture(path: str | Path) -> Picture:
    """A still picture, upright as its metadata says, transparency on white.

    Raises MediaError for a file that is missing, cut short, no picture, a video, larger than Pillow's limit, or of more
    than 8 bits per channel; BackendUnavailable for HEIC without pillow-heif.
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
            notices.append(f"it is the first of {num_frames} pages")
        bgr, is_transparent = to_bgr(image, path)
    return Picture(bgr=bgr, notices=(*([ON_WHITE] if is_transparent else []), *notices))


@contextmanager
def opened(path: Path, notices: list[str]) -> Iterator[Image.Image]:
    """A picture that was opened and is not decoded yet; Pillow's errors inside become MediaErrors, as `explained` has
    it. Raises what read_picture raises."""
    if path.is_dir() or not path.exists():
        what, cause = ("is a folder", "a video in pictures") if path.is_dir() else ("does not exist", "a typing error")
        fix = f"--video {path}" if path.is_dir() else f"ls {path.parent}"
        raise MediaError(f"{path} {what}", expected="an image file, such as JPEG or PNG", cause=cause, fix=fix)
    with explained(path, notices):
        _prepare_for(path)
        with Image.open(path) as image:
            yield image


@contextmanager
def explained(path: Path, notices: list[str]) -> Iterator[None]:
    """Inside, Pillow's errors become MediaErrors that name the true cause, and its warnings become notices."""
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
                expected="a whole image file, such as JPEG or PNG",
                cause="it was cut short or damaged",
                fix=f"fetch it again, and look at its size: ls -l {path}",
            ) from error
    # A large picture is no bomb: up to the limit at which Pillow raises, it is read and nothing needs to be said.
    said = (str(one.message) for one in caught if not issubclass(one.category, Image.DecompressionBombWarning))
    notices += [f"Pillow says: {text}" for text in said]


def to_bgr(image: Image.Image, path: Path | str) -> tuple[NDArray[np.uint8], bool]:
    """The frame that an open picture shows, (H, W, 3) uint8 BGR, and whether any of it was transparent.

    Raises MediaError for more than 8 bits per channel, and Pillow's own errors.
    """
    if image.mode.startswith(("I", "F")):
        raise MediaError(
            f"{path} has pixels of mode '{image.mode}', 16 or 32 bits wide, which would be cut off at 255",
            expected="8 bits per channel",
            cause="this is a depth or infrared image",
            fix="scale it to 0..255 first",
        )
    image = ImageOps.exif_transpose(image)
    is_transparent = False
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        lowest, _ = rgba.getextrema()[3]  # type: ignore[misc]
        is_transparent = lowest < 255
        # White, as paper and web pages are: print without a ground is mostly black.
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]), is_transparent


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of what to_bgr returns, without decoding where that is possible."""
    # A PNG whose EXIF comes after its pixels would have to be decoded for it; writers put it before them.
    known = image.format != "PNG" or "exif" in image.info
    turned = known and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    if turned and image.format == "TIFF":  # Pillow turns it itself, and from version to version at another moment
        image.load()
        return image.size
    return (image.height, image.width) if turned else image.size


def _prepare_for(path: Path) -> None:
    """Register pillow-heif for a HEIC file, once. Raises BackendUnavailable without it."""
    brands = _brands(path)
    if not brands & HEIF_BRANDS or brands & AVIF_BRANDS or "HEIF" in Image.OPEN:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise BackendUnavailable(
            f"{path} is a HEIC picture, which Pillow cannot read without the package pillow-heif",
            expected="JPEG, PNG or another format that Pillow reads alone",
            cause="phones save HEIC unless they are told to save JPEG ('most compatible')",
            fix="pip install -e '.[heif]', or convert it to JPEG",
        ) from error


def _brands(path: Path) -> frozenset[bytes]:
    """What an ISO media file (MP4, HEIC, AVIF) says it is: its major and compatible brands; of other files none."""
    with path.open("rb") as file:
        start = file.read(256)
    if start[4:8] != b"ftyp":
        return frozenset()
    box = start[8 : int.from_bytes(start[:4], "big")]
    return frozenset(box[at : at + 4] for at in range(0, len(box), 4) if at != 4)  # at 4 is a version


def _no_picture(path: Path) -> MediaError:
    expected = "an image file, such as JPEG or PNG"
    if path.stat().st_size == 0:
        cause, fix = "it is empty (0 bytes): a download or a copy that failed", "fetch it again"
    elif (brands := _brands(path)) & AVIF_BRANDS:
        cause, fix = f"it is AVIF, which Pillow reads from 11.3 on; this is {PILLOW_VERSION}", "pip install -U pillow"
    elif brands:
        cause, fix = "it is a video by its first bytes", f"--video {path}"
    else:
        cause, fix = f"it is another kind of file, or one that Pillow {PILLOW_VERSION} does not know", f"file {path}"
    return MediaError(f"{path} cannot be read as an image", expected=expected, cause=cause, fix=fix)


def _too_large(path: Path, said: str) -> MediaError:
    """Pillow tells the size in its message alone: 'Image size (N pixels) exceeds limit of M pixels, ...'."""
    size, limit = (f"{int(number) / MEGA:.0f}" for number in re.findall(r"\d+", said)[:2])
    return MediaError(
        f"{path} has {size} megapixels",
        expected=f"at most {limit}, the limit of Pillow; the model sees far fewer",
        cause="a photograph of a 200-megapixel camera, a panorama or a scan; or a file made to fill the memory",
        fix=f"make it smaller first: ffmpeg -i {path} -vf scale=iw/4:-1 smaller{path.suffix}",
    )
