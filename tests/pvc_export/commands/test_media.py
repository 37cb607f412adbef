"""Real files through both commands: the model's correct answer, and the reports of damage, times and addresses.

The clips are rendered here. "The demo" is the clip of `make demo`, which the bundled model answers correctly.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.synthetic import render_clip
from engines.video import write_video
from pvc_ref.shapes import make_clip

from ...apps.conftest import Run as LiveRun
from ...apps.conftest import pvc_live  # noqa: F401
from ...engines.video.colours import Clip, marked_interlaced, placed
from ...engines.video.test_damage import put_tags_first, remuxed
from ..conftest import Run

av = pytest.importorskip("av")

QUESTION, TRUTH = "Describe what you see.", "A yellow triangle moves up."
MIRRORED = (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)


@pytest.fixture(scope="module")
def demo() -> list[np.ndarray]:
    """The eight frames of the demo, RGB."""
    clip = make_clip(0, num_frames=8, kind="things", size=448)
    assert TRUTH in [question.answer for question in clip.questions if question.text == QUESTION]
    return [np.ascontiguousarray(bgr[..., ::-1]) for bgr in clip.bgr()]


def encode(path: Path, frames: list[Any], codec: str, layout: str, *, stream_of: Callable[[Any], None]) -> None:
    """Encode av.VideoFrames at 4 per second; `stream_of` sets up the stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, layout
        stream_of(stream)
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def as_av1(path: Path, demo: list[np.ndarray]) -> None:
    frames = [av.VideoFrame.from_ndarray(rgb, format="rgb24") for rgb in demo]
    encode(path, frames, "libsvtav1", "yuv420p", stream_of=lambda stream: None)


def as_mirrored(path: Path, demo: list[np.ndarray]) -> None:
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:, ::-1]), format="rgb24") for rgb in demo]
    encode(path, frames, "libx264", "yuv420p", stream_of=lambda stream: stream.set_display_matrix(MIRRORED))


def as_interlaced(path: Path, demo: list[np.ndarray]) -> None:
    def set_up(stream: Any) -> None:
        stream.codec_context.flags |= 1 << 29 | 1 << 18

    frames = [av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p") for rgb in demo]
    for frame in frames:
        frame.pts, frame.time_base = 0, Fraction(1, 4)
    encode(path, [marked_interlaced(frame) for frame in frames], "libx264", "yuv420p", stream_of=set_up)


def as_hdr(path: Path, demo: list[np.ndarray], *, curve: int) -> None:
    """Encode as BT.2020, 4:4:4, 10 bits, limited range, with levels placed as in BT.2408."""

    def set_up(stream: Any) -> None:
        stream.options = {"x265-params": "log-level=none:crf=12"}
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, curve, 1

    frames = []
    for rgb in demo:
        red, green, blue = np.moveaxis(placed(rgb / 255, Clip(codec="HEVC", curve=curve, primaries=9)), -1, 0)
        luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
        planes = (64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746)
        frame = av.VideoFrame(448, 448, "yuv444p10le")
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)
            rows[:, : plane.width] = np.clip(np.rint(values), 0, 1023)
        frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 9, 9, curve, 1
        frames.append(frame)
    encode(path, frames, "libx265", "yuv444p10le", stream_of=set_up)


def as_film_with_cover(path: Path, demo: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        cover, film = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=4)
        cover.width, cover.height, cover.pix_fmt = 160, 120, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film.width, film.height, film.pix_fmt = 448, 448, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((120, 160, 3), 90, np.uint8), format="rgb24")))
        for rgb in demo:
            container.mux(film.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        for stream in (film, cover):
            container.mux(stream.encode(None))
    put_tags_first(path)


KINDS = {
    "AV1": as_av1,
    "mirrored": as_mirrored,
    "interlaced": as_interlaced,
    "HLG": partial(as_hdr, curve=18),
    "PQ": partial(as_hdr, curve=16),
    "a cover before the film": as_film_with_cover,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_answers_truly_in_both_commands(
    bundle_shapes: Path,
    tmp_path: Path,
    demo: list[np.ndarray],
    pvc_export: Run,
    pvc_live: LiveRun,  # noqa: F811
    kind: str,
) -> None:
    path = tmp_path / "demo.mp4"
    KINDS[kind](path, demo)
    ran = json.loads(pvc_export("run", bundle_shapes, "--video", path, "--frames", 8, "--ask", QUESTION, "--json").out)
    assert (ran["answer"]["text"], ran["num_frames"], ran["damage"]) == (TRUTH, 8, None)
    live = pvc_live(bundle_shapes, "--source", path, "--headless", "--every-frame", "--ask", QUESTION, "--json")
    seen = json.loads(live.out)
    assert (seen["last_answer"]["text"], seen["num_processed"], seen["damage"]) == (TRUTH, 8, None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, render_clip(20, seed=5, width=192, height=144), fps=10.0)
    return path


def test_a_file_that_ends_early_is_used_and_both_commands_say_how_much_is_missing(
    bundle_fp32: Path,
    clip: Path,
    tmp_path: Path,
    pvc_export: Run,
    pvc_live: LiveRun,  # noqa: F811
) -> None:
    cut = remuxed(clip, tmp_path / "cut.mkv")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    ran = json.loads(pvc_export("run", bundle_fp32, "--video", cut, "--frames", 4, "--json").out)
    live = pvc_live(bundle_fp32, "--source", cut, "--headless", "--every-frame", "--json")
    seen = json.loads(live.out)
    assert ran["damage"] == seen["damage"] and ran["num_frames"] == 4
    assert ran["damage"]["num_missing"] == 20 - seen["num_processed"] > 3
    said = f"{ran['damage']['num_missing']} of 20 frames are missing; it ends"
    assert said in live.err and said in " ".join(pvc_export("run", bundle_fp32, "--video", cut).out.split())
    whole = json.loads(pvc_export("run", bundle_fp32, "--video", clip, "--json").out)
    assert whole["damage"] is None and (whole["black_s"], whole["unchanged_s"]) == (0, 0)


def test_a_black_picture_is_reported_in_both_commands(
    bundle_fp32: Path,
    tmp_path: Path,
    pvc_export: Run,
    pvc_live: LiveRun,  # noqa: F811
) -> None:
    black = tmp_path / "cap.mp4"
    write_video(black, [np.zeros((48, 64, 3), np.uint8)] * 7, fps=1.0)
    assert "every picture is black" in pvc_export("run", bundle_fp32, "--video", black).out
    live = pvc_live(bundle_fp32, "--source", black, "--headless", "--every-frame", "--json")
    assert "the picture has been black since 0.0 s" in live.err and json.loads(live.out)["black_s"] == 6


def test_a_variable_rate_is_asked_about_by_the_seconds_of_the_source(
    bundle_fp32: Path,
    tmp_path: Path,
    pvc_live: LiveRun,  # noqa: F811
) -> None:
    """Ten seconds at 1 fps, then one at 30: counted by frames, almost all questions would fall in the last second."""
    path, times_s = tmp_path / "vfr.mp4", [*range(10), *(10 + index / 30 for index in range(30))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture, time_s in zip(render_clip(40, width=64, height=48), times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = round(30 * time_s), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    live = pvc_live(bundle_fp32, "--source", path, "--headless", "--every-frame", "--ask-every", 3.5)
    asked = [line.split()[0] for line in live.out.splitlines() if " s  frame " in line]
    assert {"4.0", "8.0"} <= set(asked) and "11.0" in asked and "truncated" not in live.out + live.err


@pytest.mark.parametrize("address", ["rtsp://me:hunter2@camera/1", "udp://239.0.0.1:1234"])
def test_a_live_stream_is_pointed_to_pvc_live(bundle_fp32: Path, pvc_export: Run, address: str) -> None:
    run = pvc_export("run", bundle_fp32, "--video", address)
    run.says(6, "is a live stream, which has no end", "fix: watch it: pvc-live", "--source")
    assert "hunter2" not in run.message


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_a_video_on_a_web_server_is_read_as_from_a_disk(bundle_fp32: Path, clip: Path, pvc_export: Run) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(clip.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{clip.name}"
    said = [json.loads(pvc_export("run", bundle_fp32, "--video", where, "--json").out) for where in (clip, address)]
    server.shutdown()
    server.server_close()
    assert said[0]["answer"] == said[1]["answer"] and said[1]["video"] == address


def test_a_raw_stream_takes_its_rate_from_the_command_line(
    bundle_fp32: Path,
    clip: Path,
    tmp_path: Path,
    pvc_export: Run,
    pvc_live: LiveRun,  # noqa: F811
) -> None:
    raw = tmp_path / "camera.mjpeg"
    with av.open(str(raw), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for picture in render_clip(8, width=64, height=48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
    pvc_export("run", bundle_fp32, "--video", raw).says(6, "states no frame rate", "--fps 25")
    assert "8 frames, 2.00 fps" in pvc_export("run", bundle_fp32, "--video", raw, "--fps", 2).out
    live = pvc_live(bundle_fp32, "--source", raw, "--headless", "--every-frame", "--fps", 2, "--json")
    assert json.loads(live.out)["last_answer"]["time_s"] == 3.5
    pvc_export("run", bundle_fp32, "--video", clip, "--fps", 2).says(6, "has timestamps, so", "leave --fps out")
    pvc_export("run", bundle_fp32, "--ask", "x", "--fps", 2).says(2, "--fps needs --video")
    assert (
        "--fps is only for raw videos and pictures"
        in pvc_live(bundle_fp32, "--source", "0", "--headless", "--fps", 2).err
    )
