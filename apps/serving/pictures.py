"""Pictures as clients send them. Size and format are known from the header, before a pixel is decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from engines.errors import MediaError
from engines.pictures import ANIMATED_FORMATS, to_bgr
from engines.preprocess import to_model_frame
from engines.synthetic import Frame

from .limits import MOST_PIXELS, Limits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
EXPECTED = "a whole JPEG, PNG, WebP, BMP or GIF"


def check_picture(picture: bytes, limits: Limits, *, name: str = "the picture") -> None:
    """Raises MediaError for what is none, has too many bytes or pixels, or moves."""
    if len(picture) > limits.picture_bytes:
        raise MediaError(
            f"{name} has {len(picture)} bytes", expected=f"at most {limits.picture_bytes}", fix="shrink it"
        )
    with _opened(picture, name) as image:
        _check_size(image, limits.picture_pixels, name)
        if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
            raise MediaError(f"{name} moves", expected="a still picture", fix="send it as a video")


def decode_picture(picture: bytes, *, most_pixels: int = MOST_PIXELS, name: str = "the picture") -> Frame:
    """(H, W, 3) uint8 BGR, upright, transparency on white. Raises MediaError as check_picture does, and for damage."""
    with _opened(picture, name) as image:
        _check_size(image, most_pixels, name)
        try:
            return to_bgr(image, name)[0]
        except MediaError:
            raise
        except Exception as error:  # of a hostile file, Pillow raises about anything
            raise _damaged(name) from error


def decode_frame(picture: bytes, *, size: int, most_pixels: int = MOST_PIXELS) -> Frame:
    """The same as the model's frame (size, size, 3) uint8 BGR: what a stream would make of it, made elsewhere."""
    rgb = to_model_frame(decode_picture(picture, most_pixels=most_pixels, name="the frame"), size=size)
    return np.ascontiguousarray(rgb[:, :, ::-1])


def encode_frame(frame: Frame) -> bytes:
    """(H, W, 3) uint8 BGR as a picture without loss."""
    out = io.BytesIO()
    Image.fromarray(frame[:, :, ::-1]).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _opened(picture: bytes, name: str) -> Image.Image:
    """Not decoded yet. Raises MediaError for what is no picture."""
    if not picture:
        raise MediaError(f"{name} is empty", expected=EXPECTED)
    try:
        return Image.open(io.BytesIO(picture), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} has too many pixels: {error}", fix="shrink it") from error
    except Exception as error:
        raise MediaError(f"{name} is no picture that is read here", expected=EXPECTED) from error


def _check_size(image: Image.Image, most_pixels: int, name: str) -> None:
    if image.width * image.height > most_pixels:
        raise MediaError(
            f"{name} has {image.width} x {image.height} pixels", expected=f"at most {most_pixels}", fix="shrink it"
        )


def _damaged(name: str) -> MediaError:
    return MediaError(f"{name} is damaged", expected=EXPECTED, cause="it was cut short")
