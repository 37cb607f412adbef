"""A camera's pixel formats, read from a fake driver."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from apps.v4l2 import is_raw, pixel_formats


@pytest.mark.parametrize("offered", [("YUYV", "MJPG"), ("RG10",), ()])
def test_a_driver_is_asked_for_one_format_after_another(offered: tuple[str, ...], tmp_path: Path) -> None:
    def ioctl(device: int, request: int, question: bytes) -> bytes:
        index, kind = struct.unpack_from("=II", question)
        assert (request, len(question), kind) == (0xC0405602, 64, 1)
        if index == len(offered):
            raise OSError(errno.EINVAL, "no more")
        return question[:44] + offered[index].encode() + question[48:]

    camera = tmp_path / "video0"
    camera.touch()
    assert pixel_formats(str(camera), ioctl=ioctl) == offered


def test_what_is_no_camera_offers_nothing(tmp_path: Path) -> None:
    """With the real system call."""
    file = tmp_path / "video0"
    file.touch()
    assert pixel_formats(str(file)) == pixel_formats(str(tmp_path / "none")) == pixel_formats("/dev/null") == ()


@pytest.mark.parametrize("one", ["RG10", "BG10", "GB10", "BA10", "BA81", "RGGB", "RG12", "GR16", "pRAA", "BYR2"])
def test_bayer_data_is_known_as_such(one: str) -> None:
    assert is_raw((one,))


@pytest.mark.parametrize("offered", [(), ("MJPG",), ("YUYV", "RG10"), ("RGB3",), ("BA24",), ("GREY",), ("NV12",)])
def test_a_camera_that_has_pictures_is_not_raw(offered: tuple[str, ...]) -> None:
    assert not is_raw(offered)
