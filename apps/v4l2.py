"""The pixel formats of a Linux camera, queried from its driver.

Note: a CSI sensor also appears as /dev/video, where it delivers raw Bayer data: one colour per pixel, unprocessed.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import struct
from collections.abc import Callable

MJPG = "MJPG"
BAYER = re.compile(r"BA81|GBRG|GRBG|RGGB|BYR2|(BG|GB|BA|GR|RG)1[0246]|p[BGgR](AA|CC|EE)")
"""V4L2_PIX_FMT_SBGGR8 to SRGGB16 from linux/videodev2.h, plain and packed."""
VIDIOC_ENUM_FMT = 0xC0405602  # _IOWR('V', 2, struct v4l2_fmtdesc)
FORMAT = struct.Struct("=III32s4sI12x")  # index, type, flags, description, pixelformat, mbus_code, reserved
CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE
NUM_AT_MOST = 64
Ioctl = Callable[[int, int, bytes], bytes]


def pixel_formats(path: str, *, ioctl: Ioctl | None = None) -> tuple[str, ...]:
    """FOURCCs such as MJPG, in the driver's order; empty if they cannot be queried."""
    if ioctl is None:
        try:
            ioctl = importlib.import_module("fcntl").ioctl
        except ImportError:  # Windows
            return ()
    try:
        device = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # opening the camera later reports the error
        return ()
    try:
        return tuple(_enumerate(device, ioctl))
    finally:
        os.close(device)


def is_raw(offered: tuple[str, ...]) -> bool:
    """Whether all formats are raw Bayer data."""
    return bool(offered) and all(BAYER.fullmatch(one) for one in offered)


def _enumerate(device: int, ioctl: Ioctl) -> list[str]:
    found: list[str] = []
    for index in range(NUM_AT_MOST):
        try:
            answer = ioctl(device, VIDIOC_ENUM_FMT, FORMAT.pack(index, CAPTURE, 0, b"", b"", 0))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):  # end of the list, or not a camera
                break
            raise
        found.append(FORMAT.unpack(answer)[4].decode("latin-1").rstrip("\0 "))
    return found
