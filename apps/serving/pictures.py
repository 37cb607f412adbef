"""Pictures sent by clients. Size and format are checked from the header, before decoding."""

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
EXPECTED = "a complete JPEG, PNG, WebP, BMP or GIF"


def check_picture(picture: bytes, limits: Limits, *, name: str = "the picture") -> None:
    """Raise MediaError if it is not a picture, has too many bytes or pixels, or is animated."""
    if len(picture) > limits.picture_bytes:
        raise MediaError(
            f"{name} has {len(picture)} bytes", expected=f"at most {limits.picture_bytes}", fix="send a smaller one"
        )
    with _opened(picture, name) as image:
        _check_size(image, limits.picture_pixels, name)
        if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
            raise MediaError(f"{name} is animated", expected="a still picture", fix="send it as a video")


def decode_picture(picture: bytes, *, most_pixels: int = MOST_PIXELS, name: str = "the picture") -> Frame:
    """Decode to (H, W, 3) uint8 BGR, upright, on white. Raises MediaError as check_picture does, and for damage."""
    with _opened(picture, name) as image:
        _check_size(image, most_pixels, name)
        try:
            return to_bgr(image, name)[0]
        except MediaError:
            raise
        except Exception as error:  # for a hostile file, Pillow may raise almost anything
            raise _damaged(name) from error


def decode_frame(picture: bytes, *, size: int, most_pixels: int = MOST_PIXELS) -> Frame:
    """Decode to the model's frame (size, size, 3) uint8 BGR: the stream's preprocessing, done outside its thread."""
    rgb = to_model_frame(decode_picture(picture, most_pixels=most_pixels, name="the frame"), size=size)
    return np.ascontiguousarray(rgb[:, :, ::-1])


def encode_frame(frame: Frame) -> bytes:
    """Encode (H, W, 3) uint8 BGR losslessly."""
    out = io.BytesIO()
    Image.fromarray(frame[:, :, ::-1]).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _opened(picture: bytes, name: str) -> Image.Image:
    """Open without decoding. Raises MediaError if it is not a picture."""
    if not picture:
        raise MediaError(f"{name} is empty", expected=EXPECTED)
    try:
        return Image.open(io.BytesIO(picture), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} has too many pixels: {error}", fix="send a smaller one") from error
    except Exception as error:
        raise MediaError(f"{name} is not a picture in a supported format", expected=EXPECTED) from error


def _check_size(image: Image.Image, most_pixels: int, name: str) -> None:
    if image.width * image.height > most_pixels:
        raise MediaError(
            f"{name} has {image.width} x {image.height} pixels",
            expected=f"at most {most_pixels}",
            fix="send a smaller one",
        )


def _damaged(name: str) -> MediaError:
    return MediaError(f"{name} is damaged", expected=EXPECTED, cause="it is truncated")
