"""Pipelines as text: the decoder of each stream, and that an address stays a single property value."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.gstreamer import csi_pipeline, encoded, has_element, rtsp_pipeline

HOSTILE = [
    'rtsp://cam/a" ! filesink location="/tmp/x',
    "rtsp://cam/a' ! filesink location='/tmp/x",
    'rtsp://cam/a\\" ! filesink location=/tmp/x',
    "rtsp://cam/a\\",
    "rtsp://cam/a ! fakesink name=evil",
    "rtsp://cam/a\n!\tfakesink name=evil",
    'rtsp://me:pw" ! fakesink name="evil@cam/a',
    "rtsp://me:p w!x@cam/a?b=c&d=(1)#e;f,g",
]
ADDRESS_AND_ELEMENTS = """
import ctypes, sys
gst, gobject = ctypes.CDLL(sys.argv[1]), ctypes.CDLL("libgobject-2.0.so.0")
gst.gst_init(None, None)
for name in ("gst_parse_launch", "gst_bin_get_by_name"):
    getattr(gst, name).restype = ctypes.c_void_p
error, location = ctypes.c_void_p(), ctypes.c_char_p()
pipeline = gst.gst_parse_launch(sys.argv[2].encode(), ctypes.byref(error))
camera = gst.gst_bin_get_by_name(ctypes.c_void_p(pipeline), b"camera")
gobject.g_object_get(ctypes.c_void_p(camera), b"location", ctypes.byref(location), None)
evil = gst.gst_bin_get_by_name(ctypes.c_void_p(pipeline), b"evil")
print(bool(error.value), bool(evil), location.value.decode())
"""


def test_a_csi_camera_s_pipeline_is_the_known_one() -> None:
    assert csi_pipeline("csi:0") == (
        "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=1280,height=720,format=NV12,framerate=30/1 ! "
        "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


@pytest.mark.parametrize(
    ("codec", "parts"), [("h264", "rtph264depay ! h264parse"), ("hevc", "rtph265depay ! h265parse")]
)
def test_a_network_camera_is_decoded_in_hardware_by_its_codec(codec: str, parts: str) -> None:
    pipeline = rtsp_pipeline("rtsp://me:pw@cam:554/s?a=1&b=2", codec)
    assert pipeline.startswith('rtspsrc location="rtsp://me:pw@cam:554/s?a=1&b=2" latency=0 protocols=tcp ! ')
    assert f"media=video ! {parts} ! nvv4l2decoder ! nvvidconv ! " in pipeline
    assert pipeline.endswith(" ! appsink drop=true max-buffers=1 sync=false")


@pytest.mark.parametrize("url", HOSTILE)
def test_no_address_ends_its_quotes(url: str) -> None:
    quoted = rtsp_pipeline(url, "h264").partition('location="')[2].partition('" latency=0')[0]
    assert not set(quoted) & set("\"'\\ \n\t") and quoted == encoded(url)
    assert rtsp_pipeline(url, "h264").count('"') == 2


@pytest.mark.parametrize("url", HOSTILE)
def test_gstreamer_s_own_parser_finds_one_address_and_no_further_element(url: str) -> None:
    library = ctypes.util.find_library("gstreamer-1.0")
    if library is None:
        pytest.skip("libgstreamer-1.0 is not installed")
    # Only the elements of GStreamer's core are installed here; the parser is the same.
    source = rtsp_pipeline(url, "h264").partition(" latency=")[0].replace("rtspsrc", "filesrc name=camera")
    command = [sys.executable, "-c", ADDRESS_AND_ELEMENTS, library, f"{source} ! fakesink"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.rstrip("\n") == f"False False {encoded(url)}"


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("rtsp://me:p%20w@cam:554/live", "rtsp://me:p%20w@cam:554/live"),
        ("rtsp://me:p@w:1@cam/live", "rtsp://me:p%40w%3A1@cam/live"),
        ("rtsp://cam/live?to=a@b", "rtsp://cam/live?to=a@b"),
        ("rtsp://[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
    ],
)
def test_an_address_is_encoded_once_and_no_more_than_needed(url: str, same: str) -> None:
    assert encoded(url) == same == encoded(same)


@pytest.mark.parametrize(("exit_code", "known"), [(0, True), (1, False)])
def test_gstreamer_s_tool_says_whether_an_element_is_installed(
    exit_code: int, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "gst-inspect-1.0"
    tool.write_text(f'#!/bin/sh\n[ "$*" = "--exists nvv4l2decoder" ] && exit {exit_code}\nexit 9\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert has_element("nvv4l2decoder") is known


def test_without_gstreamer_s_tool_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert has_element("nvv4l2decoder") is None
