"""Addresses: how each is interpreted, and that no password is shown."""

from __future__ import annotations

import pytest

from apps.addresses import parse_address
from engines.errors import MediaError


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("synthetic", "synthetic", "synthetic"),
        ("0", "camera", "0"),
        (" 12 ", "camera", "12"),
        ("/dev/v4l/by-id/cam", "camera", "/dev/v4l/by-id/cam"),
        ("rtsp://10.0.0.2/live", "url", "rtsp://10.0.0.2/live"),
        ("rtsp://cam/ ! filesink location=/tmp/x", "url", "rtsp://cam/%20!%20filesink%20location=/tmp/x"),
        ("udp://@239.0.0.1:1234", "url", "udp://@239.0.0.1:1234"),
        ("file:///data/a.mp4", "file", "/data/a.mp4"),
        ("nvarguscamerasrc ! appsink", "pipeline", "nvarguscamerasrc ! appsink"),
        ("clip 1.mp4", "file", "clip 1.mp4"),
        ("10:30.mp4", "file", "10:30.mp4"),
        ("99999999999", "file", "99999999999"),
    ],
)
def test_an_address_is_what_it_looks_like(text: str, kind: str, target: str) -> None:
    address = parse_address(text)
    assert (address.kind, address.target) == (kind, target)
    assert address.is_live == (kind in ("camera", "url", "pipeline"))


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("csi:0", "CSI camera 0", ["sensor-id=0 ", "width=1280,height=720,", "framerate=30/1 "]),
        ("csi:1,1920x1080@60", "CSI camera 1,1920x1080@60", ["sensor-id=1 ", "width=1920,height=1080,", "=60/1 "]),
        ("csi:2,640x480", "CSI camera 2,640x480", ["sensor-id=2 ", "width=640,height=480,", "framerate=30/1 "]),
    ],
)
def test_a_csi_camera_has_a_number_and_may_have_a_mode(text: str, name: str, parts: list[str]) -> None:
    address = parse_address(text)
    assert (address.kind, address.name) == ("csi", name) and address.is_live and not address.may_wait
    assert all(part in address.target for part in parts), address.target
    assert address.target.startswith("nvarguscamerasrc ") and "drop=true max-buffers=1 sync=false" in address.target


@pytest.mark.parametrize("text", ["csi:", "csi:x", "csi:0,1280", "csi:0 ! filesink location=x", "csi:0,1280x720@30/1"])
def test_what_is_no_csi_camera_is_refused_and_never_a_pipeline(text: str) -> None:
    with pytest.raises(MediaError) as caught:
        parse_address(text)
    assert "is not a CSI camera" in caught.value.what and "csi:0,1920x1080@30" in caught.value.expected


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://me:hunter2@10.0.0.2/live",
        "rtsp://:hunter2@10.0.0.2",
        "rtsp://me:a hunter2@cam/live",
        "rtsp://me:p@hunter2@cam/live",
        "rtsp://me:p/hunter2@cam/live",
        "rtsp://me:'\"hunter2!\\@cam/live",
        "rtsp://cam/live?user=me&password=hunter2",
        "rtsp://cam/user=me_password=hunter2_channel=1",
        "rtspsrc location=rtsp://me:hunter2@cam ! appsink",
        "rtspsrc user-id=me user-pw=hunter2 location=rtsp://cam ! appsink",
        'rtspsrc user-id=me user-pw="a hunter2" location=rtsp://cam ! appsink',
    ],
)
def test_a_password_is_used_but_never_shown(text: str) -> None:
    address = parse_address(text)
    assert "hunter2" in address.target and "hunter2" not in address.name and "***" in address.name


@pytest.mark.parametrize("text", ["rtsp://cam:554/live?to=a@b", "http://h/a.mp4?bypass=1", "rtsp://me@cam/live"])
def test_what_is_no_password_is_shown(text: str) -> None:
    assert parse_address(text).name == text
