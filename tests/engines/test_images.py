"""Images as static videos: the reference's tiles and rows, and questions to a stream about images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pvc_ref.preprocess
from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.errors import FrameError, MediaError, StreamError, StreamFull
from engines.images import ImageEncoder
from engines.preprocess import num_tiles, tile_grid, to_tiles
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.recorded_sessions import Recorder
from pvc_ref import PVC
from pvc_ref.prompt import STOP_TOKEN

from .test_preprocess import photograph

Frames = list[np.ndarray]
SIZE = 112  # the image size of `tiny`
SHAPES = [(112, 112), (90, 160), (300, 100), (100, 320), (480, 640), (1, 700), (700, 1), (448, 449)]


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


@pytest.mark.parametrize("max_tiles", [1, 2, 6, 12])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("use_thumbnail", [True, False], ids=["thumbnail", "none"])
def test_tiles_are_those_of_the_reference_bit_for_bit(
    shape: tuple[int, int], max_tiles: int, use_thumbnail: bool
) -> None:
    image = photograph(*shape)
    rgb = np.ascontiguousarray(image[..., ::-1])
    expected = pvc_ref.preprocess.tile_image(rgb, tile_size=SIZE, max_tiles=max_tiles, use_thumbnail=use_thumbnail)
    tiles = to_tiles(image, size=SIZE, max_tiles=max_tiles, use_thumbnail=use_thumbnail)
    np.testing.assert_array_equal(tiles, expected)
    assert num_tiles(image, size=SIZE, max_tiles=max_tiles, use_thumbnail=use_thumbnail) == len(tiles)


def test_every_grid_is_the_reference_s() -> None:
    rng = np.random.default_rng(0)
    for width, height, max_tiles in rng.integers(1, [4000, 4000, 13], (2000, 3)).tolist():
        expected = pvc_ref.preprocess.tile_grid(width, height, max_tiles=max_tiles, tile_size=448)
        assert tile_grid(width, height, size=448, max_tiles=max_tiles) == expected, (width, height, max_tiles)


def test_what_is_no_image_is_refused(bundle: Bundle) -> None:
    stream = PVCStream(bundle)
    with pytest.raises(FrameError, match="float32"):
        stream.encode_image(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(MediaError, match="max_tiles is 0"):
        stream.encode_image(photograph(50, 50), max_tiles=0)


def reference_embeds(model: PVC, image: np.ndarray, max_tiles: int, window: int) -> torch.Tensor:
    size = model.config.vision.image_size
    rgb = np.ascontiguousarray(image[..., ::-1])
    tiles = torch.from_numpy(pvc_ref.preprocess.tile_image(rgb, tile_size=size, max_tiles=max_tiles))
    with torch.no_grad():
        return model.encode_images([tiles], window=window)[0]


@pytest.mark.parametrize("max_tiles", [1, 4])
@pytest.mark.parametrize("layout", ["tile_streams", "tiles_in_time"])
def test_an_image_is_encoded_as_the_reference_does(
    bundle: Bundle, tiny: LoadedModel, layout: str, max_tiles: int
) -> None:
    """Both layouts; tiles_in_time wraps around the ring. The first image leaves no trace in the second."""
    model = PVC(replace(tiny.config, image_layout=layout)).eval()  # type: ignore[arg-type]
    model.load_state_dict(tiny.model.state_dict())
    manifest = replace(bundle.manifest, images=replace(bundle.manifest.images, layout=layout))  # type: ignore[arg-type]
    encoder = ImageEncoder(bundle.sessions, manifest)
    for image in (photograph(100, 300), photograph(200, 120, seed=1)):
        expected = reference_embeds(model, image, max_tiles, manifest.limits.window)
        got = encoder.encode(image, max_tiles=max_tiles)
        assert got.shape == expected.shape and len(got) == encoder.num_rows(image, max_tiles=max_tiles)
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-5 * float(expected.abs().max()))


def test_what_knows_no_time_runs_once_for_all_repeats_of_a_tile(bundle: Bundle) -> None:
    recorder = Recorder(bundle.sessions)
    PVCStream(replace(bundle, sessions=recorder.sessions)).encode_image(photograph(100, 300), max_tiles=3)
    tiles, repeats = 4, bundle.manifest.images.num_repeats  # three tiles and a thumbnail
    assert len(recorder.calls["trunk"]) == tiles and len(recorder.calls["temporal"]) == tiles * repeats


def test_a_bundle_of_a_model_without_thumbnails_makes_none(bundle: Bundle) -> None:
    without = replace(bundle.manifest, images=replace(bundle.manifest.images, use_thumbnail=False))
    encoders = [ImageEncoder(bundle.sessions, manifest) for manifest in (bundle.manifest, without)]
    image = photograph(100, 300)
    rows, fewer = (encoder.num_rows(image, max_tiles=3) for encoder in encoders)
    assert fewer * 4 == rows * 3
    full, got = (encoder.encode(image, max_tiles=3) for encoder in encoders)
    np.testing.assert_array_equal(got, full[:fewer])


def reference_tokens(tiny: LoadedModel, images: Frames, question: str, *, window: int, num_tokens: int) -> list[int]:
    model = tiny.model
    embeds = [reference_embeds(model, image, 2, window) for image in images]
    per_tile = model.config.num_image_repeats * model.config.compressor.num_tokens
    ids = tiny.image_prompt_ids(num_tiles=[len(rows) // per_tile for rows in embeds], question=question)
    with torch.no_grad():
        inputs = tiny.prompt_embeds(ids, torch.cat(embeds)[None])
        return model.generate(inputs, max_new_tokens=num_tokens, stop_ids=[tiny.token_id(STOP_TOKEN)])


@pytest.mark.parametrize(
    ("num_images", "question"),
    [
        (1, "What is it?"),
        (1, ""),
        (2, "Which is larger?"),
        (3, "Name them."),
        (1, "Here <image> is what?"),
        (2, "<image><image>"),
        (2, "Is <image>\nthe same as <image>?"),
    ],
)
def test_the_answer_about_images_is_the_reference_s_greedy_text(
    bundle: Bundle, tiny: LoadedModel, num_images: int, question: str
) -> None:
    images = [photograph(60 + 50 * i, 150, seed=i) for i in range(num_images)]
    answer = PVCStream(bundle).ask(question, images=images, max_tiles=2, max_new_tokens=10)
    window = bundle.manifest.limits.window
    assert list(answer.token_ids) == reference_tokens(tiny, images, question, window=window, num_tokens=10)
    assert answer.vision_ms > 0


def test_an_image_that_was_encoded_once_is_asked_about_as_if_it_were_encoded_each_time(bundle: Bundle) -> None:
    image, other = photograph(100, 300), photograph(60, 60, seed=2)
    recorder = Recorder(bundle.sessions)
    stream = PVCStream(replace(bundle, sessions=recorder.sessions))
    encoded = stream.encode_image(image, max_tiles=2)
    num_runs = len(recorder.calls["trunk"])
    for question in ("What is it?", "Is <image> red?"):
        told = stream.ask(question, images=[encoded], max_new_tokens=5)
        assert len(recorder.calls["trunk"]) == num_runs
        assert (
            told.token_ids == PVCStream(bundle).ask(question, images=[image], max_tiles=2, max_new_tokens=5).token_ids
        )
    want = PVCStream(bundle).score("Both?", [1, 2], images=[image, other], max_tiles=2)
    np.testing.assert_array_equal(stream.score("Both?", [1, 2], images=[encoded, other], max_tiles=2), want)
    for wrong in (encoded[:, :-1], encoded.astype(np.uint8), encoded[0]):
        with pytest.raises(FrameError):
            stream.ask("What is it?", images=[wrong])


def test_other_images_give_other_answers(bundle: Bundle) -> None:
    stream = PVCStream(bundle)
    said = {stream.ask("?", images=[photograph(90, 90, seed=i)], max_new_tokens=10).token_ids for i in range(4)}
    assert len(said) == 4


def test_images_leave_a_stream_s_frames_alone(bundle: Bundle, frames: Frames) -> None:
    asked, silent = PVCStream(bundle), PVCStream(bundle)
    for frame in frames[:5]:
        asked.push(frame)
        silent.push(frame)
        asked.ask("Compare it with <image>.", images=[photograph(60, 60)], max_new_tokens=3)
    assert (asked.num_frames, asked.context_rows) == (silent.num_frames, silent.context_rows)
    assert asked.ask("What?", max_new_tokens=8).token_ids == silent.ask("What?", max_new_tokens=8).token_ids


@pytest.mark.parametrize(
    ("question", "num_images"), [("<image> and <image>?", 1), ("<image>?", 2), ("<image>?", 0)], ids=str
)
def test_a_question_that_places_other_images_than_it_was_given_is_refused(
    bundle: Bundle, question: str, num_images: int
) -> None:
    stream = PVCStream(bundle)
    with pytest.raises(StreamError, match=f"but {num_images} images were given"):
        stream.ask(question, images=[photograph(20, 20)] * num_images)
    assert stream.context_rows == 0


def test_images_that_do_not_fit_are_refused_before_anything_is_run(bundle: Bundle) -> None:
    recorder = Recorder(bundle.sessions)
    stream = PVCStream(replace(bundle, sessions=recorder.sessions))
    with pytest.raises(StreamFull, match="--context"):
        stream.ask("?", images=[photograph(300, 300)] * 20)
    assert not any(recorder.calls.values())
