"""Still pictures in files: every mode is read as the frame a person sees, and unreadable files are named."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from engines.errors import BackendUnavailable, MediaError
from engines.pictures import ON_WHITE, opened, read_picture, upright_size

from .test_preprocess import photograph

HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)
ANIMATED = {"gif": {}, "webp": {"lossless": True}, "png": {}, "avif": {}}


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_an_image_of_more_than_8_bits_is_refused_and_not_cut_off(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8) * 900).save(tmp_path / "depth.tiff")
    with pytest.raises(MediaError, match=r"depth.tiff has pixels of mode '.*', 16 or 32 bits per channel"):
        read_picture(tmp_path / "depth.tiff")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_image_of_8_bits_is_read_as_bgr(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photograph(20, 30)).convert(mode)
    image.save(tmp_path / "image.tiff")
    read = read_picture(tmp_path / "image.tiff")
    assert read.bgr.dtype == np.uint8 and np.array_equal(read.bgr[..., ::-1], np.asarray(image.convert("RGB")))
    assert read.notices == (), "an opaque alpha channel needs no notice"


def transparent_file(folder: Path, mode: str) -> Path:
    """Save a grey picture with a ramp of opacity as PNG: 8 rows of 16 levels."""
    alpha = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (8, 1))
    grey = np.full((8, 16), 40, np.uint8)
    path = folder / f"{mode}.png"
    if mode == "P":  # one palette entry per opacity, all of the same colour
        image = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8), (8, 1)), mode="P")
        image.putpalette([40] * 48)
        image.save(path, transparency=alpha[0].tobytes())
    elif mode in ("L", "RGB"):  # one colour counts as transparent
        grey[alpha < 128] = 7
        colour = 7 if mode == "L" else (7, 7, 7)
        Image.fromarray(grey).convert(mode).save(path, transparency=colour)
    else:
        Image.merge(mode, [*[Image.fromarray(grey)] * (len(mode) - 1), Image.fromarray(alpha)]).save(path)
    return path


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L", "RGB"])
def test_transparency_is_laid_on_white_and_said(tmp_path: Path, mode: str) -> None:
    read = read_picture(transparent_file(tmp_path, mode))
    alpha = np.linspace(0, 255, 16).astype(np.uint8) / 255
    if mode in ("L", "RGB"):
        alpha = (alpha * 255 >= 128).astype(float)
    on_white = 40 * alpha + 255 * (1 - alpha)
    assert np.abs(read.bgr - on_white[None, :, None]).max() <= 1
    assert read.notices == (ON_WHITE,)


def test_a_photograph_is_turned_upright_and_its_size_is_known_before(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    for suffix in ("png", "jpg", "tiff", "webp", "avif"):
        path = tmp_path / f"turned.{suffix}"
        Image.fromarray(photograph(20, 30)).save(path, exif=exif)
        assert read_picture(path).bgr.shape == (30, 20, 3), suffix
        with opened(path, []) as image:
            assert upright_size(image) == (20, 30), suffix


def test_a_photograph_of_200_megapixels_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", (20_000, 10_000)).save(path, compress_level=1)
    with warnings.catch_warnings(record=True) as raw, pytest.raises(MediaError) as caught:
        read_picture(path)
    error = caught.value
    assert error.what == f"{path} has 200 megapixels" and "at most 179" in error.expected
    assert "200-megapixel camera" in error.cause and f"ffmpeg -i {path}" in error.fix and not raw


def test_a_photograph_that_pillow_only_warns_of_is_read_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it warns above this, and raises above twice this
    with pytest.warns(Image.DecompressionBombWarning), Image.open(tmp_path / "photo.png"):
        pass
    with warnings.catch_warnings(record=True) as raw:
        warnings.simplefilter("always")
        read = read_picture(tmp_path / "photo.png")
    assert read.bgr.shape == (30, 40, 3) and read.notices == () and not raw


def test_what_pillow_complains_of_is_a_notice_and_no_raw_warning(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    Image.new("RGB", (8, 6), "red").save(path, save_all=True, append_images=[Image.new("RGB", (8, 6))])
    path.write_bytes(path.read_bytes().replace(b"acTL\0\0\0\2", b"acTL\0\0\0\0"))  # an animation of no frames
    data = path.read_bytes()
    at = data.index(b"acTL")
    path.write_bytes(data[: at + 12] + struct.pack(">I", zlib.crc32(data[at : at + 12])) + data[at + 16 :])
    with warnings.catch_warnings(record=True) as raw:
        warnings.simplefilter("always")
        read = read_picture(path)
    assert read.bgr[0, 0].tolist() == [0, 0, 255] and not raw
    assert any("Pillow warns: Invalid APNG" in notice for notice in read.notices)


def test_heic_is_named_and_pillow_heif_is_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "IMG_0001.jpg"  # detected by content: phone exports often have a wrong suffix
    path.write_bytes(HEIC)
    with pytest.raises(BackendUnavailable, match="is a HEIC picture") as caught:
        read_picture(path)
    assert "pip install -e '.[heif]'" in caught.value.fix and caught.value.exit_code == 4


@pytest.fixture
def heif_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pillow-heif that draws every HEIC file as 4 x 2 red pixels."""

    def register_heif_opener() -> None:
        def open_it(file: object, name: str) -> Image.Image:
            image = Image.new("RGB", (4, 2), "red")
            image.format = "HEIF"
            return image

        Image.register_open("HEIF", open_it, lambda prefix: prefix[4:12] == b"ftypheic")

    package = ModuleType("pillow_heif")
    package.register_heif_opener = register_heif_opener  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    yield
    Image.OPEN.pop("HEIF", None)
    if "HEIF" in Image.ID:
        Image.ID.remove("HEIF")


@pytest.mark.usefixtures("heif_package")
def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    for _ in range(2):
        assert read_picture(tmp_path / "a.heic").bgr.tolist() == [[[0, 0, 255]] * 4] * 2


@pytest.mark.parametrize("suffix", ANIMATED)
def test_an_animated_picture_is_a_video_and_not_an_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moves.{suffix}"
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    with pytest.raises(MediaError, match=r"is a video: an animated \w+ of 3 frames") as caught:
        read_picture(path)
    assert caught.value.fix == f"--video {path}"
    images[0].save(path)
    assert read_picture(path).bgr.shape == (32, 32, 3)


def test_of_a_document_the_first_page_is_read_and_that_is_reported(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime")]
    pages[0].save(tmp_path / "scan.tiff", save_all=True, append_images=pages[1:])
    read = read_picture(tmp_path / "scan.tiff")
    assert read.bgr[0, 0].tolist() == [0, 0, 255] and read.notices == ("only the first of 2 pages is read",)


@pytest.mark.parametrize(
    ("name", "content", "what", "cause", "fix"),
    [
        ("none.png", None, "does not exist", "a typing error", "ls "),
        ("empty.png", b"", "cannot be read as an image", "is empty", "fetch it again"),
        ("text.png", b"not an image", "cannot be read as an image", "it is not an image", "file "),
        ("cut.png", "cut", "cannot be read as an image", "truncated or damaged", "fetch it again"),
        ("clip.mp4", HEIC.replace(b"heic", b"isom").replace(b"mif1", b"avc1"), "cannot be read", "a video", "--video "),
        ("folder", "folder", "is a folder", "a folder of frames", "--video "),
    ],
)
def test_what_is_no_picture_is_named(
    tmp_path: Path, name: str, content: bytes | str | None, what: str, cause: str, fix: str
) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        Image.fromarray(photograph(40, 50)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        read_picture(path)
    error = caught.value
    assert f"{name} {what}" in error.what and "image file" in error.expected
    assert cause in error.cause and error.fix.startswith(fix)
