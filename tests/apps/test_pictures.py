"""pvc-live on pictures (a folder, numbered files, an animation): the model sees every pixel, at the stated rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.addresses import parse_address
from apps.capture import open_source
from apps.pictures import PictureDevice
from engines import PVCStream, open_bundle
from engines.errors import MediaError
from engines.synthetic import render_clip
from engines.video import write_video
from pvc_export.commands.run import RunRequest, run
from pvc_export.terminal.console import Console
from pvc_ref.shapes import make_clip

from .conftest import Run

NUM_FRAMES = 6


@pytest.fixture
def frames() -> list[np.ndarray]:
    """Frames with so few colours that a GIF stores them exactly."""
    clip = render_clip(NUM_FRAMES, seed=4)
    return [np.asarray(Image.fromarray(frame).quantize(64).convert("RGB")) for frame in clip]


@pytest.fixture
def folder(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    """Save the frames as pictures, and next to the folder as animations with 4 frames per second."""
    images = [Image.fromarray(frame[..., ::-1]) for frame in frames]
    path = tmp_path / "frames"
    path.mkdir()
    for index, image in enumerate(images, start=8):  # 8, 9, 10: not in alphabetical order
        image.save(path / f"shot{index}.png")
    for suffix in ("gif", "png", "webp"):
        images[0].save(
            tmp_path / f"moves.{suffix}", save_all=True, append_images=images[1:], duration=250, lossless=True
        )
    return path


@pytest.mark.parametrize("source", ["frames", "frames/shot%d.png", "moves.gif", "moves.png", "moves.webp"])
def test_the_model_sees_every_pixel_at_the_stated_rate(
    pvc_live: Run, bundle_fp32: Path, folder: Path, frames: list[np.ndarray], source: str
) -> None:
    rate = ["--fps", "4"] if source.startswith("frames") else []
    options = ("--headless", "--every-frame", "--max-new-tokens", "8", "--json", *rate)
    result = pvc_live(bundle_fp32, "--source", folder.parent / source, *options)
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    stream = PVCStream(open_bundle(bundle_fp32))
    for frame in frames:
        stream.push(frame)
    reply = summary["last_answer"]
    assert reply["text"] == stream.ask("What happens?", max_new_tokens=8).text
    assert (reply["frame_index"], reply["time_s"]) == (NUM_FRAMES - 1, (NUM_FRAMES - 1) / 4)
    assert summary["num_processed"] == NUM_FRAMES and summary["notices"] == [] and "source ended" in summary["ended"]


def test_pictures_without_a_rate_follow_one_another_as_ffmpeg_has_them(folder: Path) -> None:
    source = open_source(parse_address(str(folder)), every_frame=True)
    times = []
    while (captured := source.take(1.0)) is not None:
        times.append(captured.time_s)
    assert source.ended and times == pytest.approx([index / 25 for index in range(NUM_FRAMES)])


def test_what_is_amiss_is_reported_once_and_stands_in_the_json(pvc_live: Run, bundle_fp32: Path, folder: Path) -> None:
    (folder / "shot9.png").write_bytes(b"")
    Image.new("RGBA", (192, 144)).save(folder / "shot10.png")
    result = pvc_live(bundle_fp32, "--source", folder, "--headless", "--every-frame", "--json")
    notices = json.loads(result.out)["notices"]
    assert "left out: 1; the first" in notices[0] and "shot9.png cannot be read" in notices[0]
    assert notices[-1].startswith(f"{folder}: ") and "its transparent parts are shown on white" in notices[-1]
    assert all(result.err.count(notice) == 1 for notice in notices[-1:])


def test_a_device_tells_how_many_pictures_were_left_out(folder: Path) -> None:
    for name in ("shot8.png", "shot11.png", "shot12.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-400])
    device = PictureDevice(parse_address(str(folder)), fps=None)
    shown = list(iter(device.read, None))
    assert len(shown) == NUM_FRAMES - 3 and "left out: 3; the first" in device.notice
    device.close()
    assert device.read() is None


def test_pictures_of_two_sizes_are_refused_before_anything_runs(pvc_live: Run, bundle_fp32: Path, folder: Path) -> None:
    Image.new("RGB", (64, 48)).save(folder / "shot12.png")
    result = pvc_live(bundle_fp32, "--source", folder, "--headless")
    assert result.code == 6 and "shot12.png is 64x48, but" in result.err and result.out == ""


@pytest.mark.parametrize("source", ["synthetic", "0", "/dev/video0"])
def test_a_rate_is_refused_for_what_has_its_own_pace(pvc_live: Run, bundle_fp32: Path, source: str) -> None:
    result = pvc_live(bundle_fp32, "--source", source, "--headless", "--fps", "5")
    assert result.code == 2 and "--fps is only for raw videos and pictures" in result.err


def test_a_video_file_keeps_its_own_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", render_clip(2, width=64, height=48), fps=5)
    with pytest.raises(MediaError, match="has timestamps, so") as caught:
        open_source(parse_address(str(tmp_path / "clip.mp4")), fps=9)
    assert caught.value.fix == "leave --fps out"


def test_the_bundled_model_answers_truly_about_pictures(pvc_live: Run, bundle_shapes: Path, tmp_path: Path) -> None:
    """A clip as a folder, a pattern and an animation; and a card's print on a transparent background."""
    clip = make_clip(1, num_frames=8, kind="things", size=448)
    (asked,) = (question for question in clip.questions if "happened" in question.text)
    images = [Image.fromarray(frame) for frame in clip.frames]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    animation = tmp_path / "moves" / "clip.webp"
    animation.parent.mkdir()
    images[0].save(animation, save_all=True, append_images=images[1:], duration=250, lossless=True)
    for source in (tmp_path, tmp_path / "%d.png", animation):
        request = RunRequest(bundle=bundle_shapes, video=source, ask=asked.text, frames=0)
        assert run(request, Console(quiet=True)).answer.text == asked.answer, source
        options = ("--ask", asked.text, "--headless", "--every-frame", "--json")
        told = json.loads(pvc_live(bundle_shapes, "--source", source, *options).out)
        assert told["last_answer"]["text"] == asked.answer, source
    card = make_clip(122, num_frames=1, kind="card", size=448)  # dark print on a light background
    (asked,) = (question for question in card.questions if question.topic == "number")
    grey = card.frames[0].mean(axis=-1)
    ink = Image.fromarray((255 * np.clip((np.median(grey) - grey) / np.ptp(grey), 0, 1)).astype(np.uint8))
    Image.merge("LA", [Image.new("L", ink.size), ink]).save(tmp_path / "print.png")  # black, as opaque as it was dark
    shown = run(RunRequest(bundle=bundle_shapes, images=(tmp_path / "print.png",), ask=asked.text), Console(quiet=True))
    assert shown.answer.text == asked.answer and "shown on white" in shown.notices[0]
