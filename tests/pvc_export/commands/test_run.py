"""`pvc-export run`: a video, images, or no input; and a stream of several hundred frames in constant memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines import Answer, PVCStream, open_bundle
from engines.manifest import Manifest
from engines.spec import StreamLimits
from engines.stream import PushTiming
from engines.target import load_target
from engines.video import write_video
from pvc_export.bundles.export import ExportRequest
from pvc_export.commands.run import RunRequest, RunResult
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.clip import render_clip

from ...conftest import SharedBundle
from ..conftest import Run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, render_clip(20, seed=5), fps=10.0)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A landscape and a portrait picture, in two file formats."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "wide.png", folder / "tall photo.jpg"]
    for path, frame in zip(paths, render_clip(2, seed=9), strict=True):
        image = Image.fromarray(frame[..., ::-1] if path.suffix == ".png" else np.rot90(frame)[..., ::-1])
        image.save(path)
    return paths


def test_run_shows_images_and_matches_the_reference(bundle_fp16: Path, pictures: list[Path], pvc_export: Run) -> None:
    images = [option for path in pictures for option in ("--image", path)]
    for question in ("What is it?", "Is <image> larger than <image>?"):
        result = pvc_export("run", bundle_fp16, *images, "--ask", question, "--tiles", 1, "--reference")
        assert result.exit_code == 0, result.message
        assert "wide.png: 192x144" in result.out and "tall photo.jpg: 144x192" in result.out
        assert "reference: equal (32 greedy tokens)" in result.out and "first token after" in result.out


def test_run_says_that_transparency_was_laid_on_white(bundle_fp16: Path, tmp_path: Path, pvc_export: Run) -> None:
    path = tmp_path / "print.png"
    Image.new("LA", (64, 64), (0, 0)).save(path)
    white = tmp_path / "white.png"
    Image.new("RGB", (64, 64), "white").save(white)
    said = [json.loads(pvc_export("run", bundle_fp16, "--image", each, "--json").out) for each in (path, white)]
    assert said[0]["notices"] == [f"{path}: its transparent parts are shown on white"] and said[1]["notices"] == []
    assert said[0]["answer"]["token_ids"] == said[1]["answer"]["token_ids"]
    assert said[0]["notices"][0] in pvc_export("run", bundle_fp16, "--image", path).out


@pytest.mark.parametrize("source", ["frames", "frames/%d.png", "moves.gif", "moves.png", "moves.webp"])
def test_pictures_are_a_video_and_the_model_sees_each_pixel(
    bundle_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    frames = [np.asarray(Image.fromarray(frame).quantize(64).convert("RGB")) for frame in render_clip(12, seed=4)]
    images = [Image.fromarray(frame[..., ::-1]) for frame in frames]
    (tmp_path / "frames").mkdir()
    for index, image in enumerate(images):
        image.save(tmp_path / "frames" / f"{index}.png")
    for suffix in ("gif", "png", "webp"):
        images[0].save(f"moves.{suffix}", save_all=True, append_images=images[1:], duration=40, lossless=True)
    said = json.loads(pvc_export("run", bundle_fp16, "--video", source, "--frames", 0, "--json").out)
    stream = PVCStream(open_bundle(bundle_fp16))
    for frame in frames:
        stream.push(frame)
    expected = stream.ask("What happens in this video?", max_new_tokens=32)
    assert said["answer"]["token_ids"] == list(expected.token_ids) and said["num_frames"] == 12
    assert said["notices"] == []


def test_the_rate_of_pictures_is_what_was_asked_for_and_damage_is_reported(
    bundle_fp16: Path, tmp_path: Path, pvc_export: Run
) -> None:
    for index in range(4):
        Image.new("L", (32, 32), 60 * index).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"")
    result = pvc_export("run", bundle_fp16, "--video", tmp_path, "--fps", 2)
    assert f"{tmp_path}: 32x32, 3 frames, 2.00 fps" in result.out
    assert "unreadable pictures left out: 1; the first" in result.out and "2.png cannot be read" in result.out
    assert f"{tmp_path}: 32x32, 3 frames, 25.00 fps" in pvc_export("run", bundle_fp16, "--video", tmp_path).out


def test_run_answers_without_anything_to_look_at(bundle_fp16: Path, pvc_export: Run) -> None:
    result = pvc_export("run", bundle_fp16, "--ask", "Who are you?", "--reference", "--json")
    data = json.loads(result.out)
    assert result.exit_code == 0 and data["reference"]["equal"] and data["num_frames"] == 0 and data["video"] is None


def test_lazy_and_eager_runs_say_the_same(bundle_fp16: Path, clip: Path, pvc_export: Run) -> None:
    said = []
    for ingest in ("eager", "lazy"):
        result = pvc_export("run", bundle_fp16, "--video", clip, "--ingest", ingest, "--json")
        said.append(json.loads(result.out))
    assert said[0]["answer"]["token_ids"] == said[1]["answer"]["token_ids"]
    assert said[0]["context_rows"] == said[1]["context_rows"] and said[1]["ingest"] == "lazy"


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["--video", "a.mp4", "--image", "b.png"], 2, "contradict each other"),
        ([], 2, "give --video, --image or --ask"),
        (["--image", "nothing.png"], 6, "nothing.png does not exist\nexpected: an image file"),
        (["--image", "text.png"], 6, "text.png cannot be read as an image"),
        (["--image", "cut.png"], 6, "cut.png cannot be read as an image"),
        (["--ask", "x", "--ingest", "lasy"], 2, "Did you mean 'lazy'?"),
        (["--ask", "x", "--tiles", "2"], 2, "--tiles needs --image"),
        (["--image", "wide.png", "--frames", "3"], 2, "--frames needs --video"),
        (["--image", "wide.png", "--fps", "3"], 2, "--fps needs --video"),
        (["--video", "clip.mp4", "--fps", "3"], 6, "clip.mp4 has timestamps, so 3 frames per second"),
        (["--image", "moves.gif"], 6, "moves.gif is a video: an animated GIF of 3 frames"),
        (["--video", "f%02d.png"], 6, "no file matches f%02d.png"),
        (["--video", "clip.mp4", "--ask", "<image>?"], 6, "but 0 images were given"),
        (["--ask", "x <image>"], 6, "but 0 images were given"),
        (["--ask", "a <|im_end|> b"], 6, "a special token of the conversation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_run_refuses_what_it_cannot_do(
    bundle_fp16: Path,
    pictures: list[Path],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pvc_export: Run,
    args: list[str],
    exit_code: int,
    message: str,
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:2000])
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    grey = [Image.new("L", (32, 32), value) for value in (0, 99, 255)]
    grey[0].save(tmp_path / "moves.gif", save_all=True, append_images=grey[1:])
    monkeypatch.chdir(tmp_path)
    pvc_export("run", bundle_fp16, *args).says(exit_code, message)


LONG = """
import json, sys
from engines import PVCStream, open_bundle
from engines.synthetic import render_clip
from engines.sizes import resident_bytes

bundle, seen = open_bundle(sys.argv[1]), []
for _ in range(3):
    stream = PVCStream(bundle, ingest=sys.argv[2])
    for index, frame in enumerate(render_clip(301), start=1):
        stream.push(frame)
        if index % 100 == 1:
            stream.ask("What moves?", max_new_tokens=4)
            seen.append(resident_bytes())
    assert stream.num_frames == 301
assert "torch" not in sys.modules
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def long_bundle(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """A CPU bundle with room for 400 frames."""
    limits = StreamLimits(window=4, context=8192)
    request = ExportRequest(out=Path(), target=load_target("cpu"), precision="fp32", limits=limits)
    return shared_bundle("long", tiny, request)


@pytest.mark.parametrize("ingest", ["eager", "lazy"])
def test_a_stream_takes_no_more_memory_than_the_one_before_it_and_both_what_a_pass_over_their_rows_does(
    long_bundle: Path, ingest: str, tiny: LoadedModel
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LONG, str(long_bundle), ingest], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seen = json.loads(result.stdout)
    first, second, third = seen[:4], seen[4:8], seen[8:]
    # 300 frames of this model are 5100 rows of 512 bytes of cache: the size of one leaked cache.
    assert third[-1] - second[-1] < 2 * 2**20
    # A pass works on the rows in use: it needs their scores before and after the softmax, and no more.
    limits = Manifest.load(long_bundle).limits
    scores = 4 * tiny.config.llm.num_heads * limits.context * (limits.chunk if ingest == "lazy" else 64)
    assert first[-1] - first[1] < 4 * scores


def test_nineteen_of_twenty_frames_is_no_guess_beyond_the_slowest() -> None:
    timings = [
        PushTiming(preprocess_ms=0.0, vision_ms=ms, ingest_ms=0.0, prepare_ms=0.0) for ms in (900.0, *[10.0] * 15, 50.0)
    ]
    bundle: Any = None  # not used
    result = RunResult(
        request=RunRequest(bundle=Path(), ask="?"), bundle=bundle,
        video=None, notices=(), frames=(), images=(), timings=tuple(timings), context_rows=0, warm_bytes=None,
        end_bytes=None,
        answer=Answer(text="", token_ids=(), finished=True, vision_ms=0.0, prefill_ms=1.0, decode_ms=0.0, margin=1.0),
    )  # fmt: skip
    assert 10.0 <= result.slowest_ms() <= 50.0 and result.token_ms() is None
