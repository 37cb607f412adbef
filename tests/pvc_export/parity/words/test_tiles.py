"""The largest image: its tiles, pixel by pixel and in order, and the answer about it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import engines.images
from engines import open_bundle
from engines.bundle import Bundle
from pvc_export.controls.runtime_patches import replaces, thumbnail_first, tiles_column_by_column
from pvc_export.graphs.facts import model_facts
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.limits import kl_limit
from pvc_export.parity.words.tiles import ask_about_tiles, compare_tiles, widest_image
from pvc_ref import PVC, PVCConfig
from pvc_ref.preprocess import tile_image

ToTiles = Callable[..., np.ndarray]
TINY = PVCConfig.preset("tiny")


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32, runtime="cpu")


@pytest.mark.parametrize("num_tiles", range(1, 13))
def test_the_widest_image_has_as_many_tiles_as_a_model_takes_and_no_two_alike(num_tiles: int) -> None:
    config = replace(TINY, max_image_tiles=num_tiles)
    tiles = tile_image(widest_image(config), tile_size=config.vision.image_size, max_tiles=num_tiles)
    assert len(tiles) == num_tiles + (num_tiles > 1)
    assert len({tile.tobytes() for tile in tiles}) == len(tiles)


def test_a_faithful_bundle_cuts_and_answers_as_the_reference_does(bundle: Bundle, tiny: LoadedModel) -> None:
    rule = compare_tiles(bundle, tiny)
    assert rule.level == "K" and rule.passed and rule.detail == "images of 7 and 7 tiles, every pixel"
    (said,) = ask_about_tiles(bundle, tiny).conversations
    assert said.fault(kl_limit("fp32")) is None and said.equal and said.num_said == 8


@replaces(engines.images, "to_tiles")
def no_thumbnail(to_tiles: ToTiles, image: np.ndarray, **sizes: int) -> np.ndarray:
    return to_tiles(image, **sizes)[:-1]


@replaces(engines.images, "to_tiles")
def blue_and_red(to_tiles: ToTiles, image: np.ndarray, **sizes: int) -> np.ndarray:
    return to_tiles(image, **sizes)[..., ::-1]


@replaces(engines.images, "to_tiles")
def five_at_most(to_tiles: ToTiles, image: np.ndarray, **sizes: int) -> np.ndarray:
    return to_tiles(image, **sizes | {"max_tiles": min(sizes["max_tiles"], 5)})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (thumbnail_first, "tile 7 of an image is in the place of tile 1, of 7 in all"),
        (tiles_column_by_column, "tile 4 of an image is in the place of tile 2"),
        (no_thumbnail, "an image is cut into 6 tiles, expected 7, including a thumbnail"),
        (blue_and_red, "tile 1 of 7 has other pixels than the reference's"),
        (five_at_most, "tiles, expected 7"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_of_tiles_is_told(
    fault: Callable[[], AbstractContextManager[None]], said: str, bundle: Bundle, tiny: LoadedModel
) -> None:
    with fault():
        rule = compare_tiles(bundle, tiny)
    assert rule.passed is False and said in rule.detail and "Check how an image is cut" in rule.detail


def test_repeats_are_counted_and_the_most_tiles_are_the_bundle_s_to_know(bundle: Bundle, tiny: LoadedModel) -> None:
    images = bundle.manifest.images
    for changed, said in (
        (replace(images, num_repeats=3), "an image of 7 tiles takes 84 rows of the LLM, expected 16 per tile"),
        (replace(images, max_tiles=5), "tiles, expected 7"),
        (replace(images, use_thumbnail=False), "an image is cut into 6 tiles, expected 7, including a thumbnail"),
    ):
        rule = compare_tiles(replace(bundle, manifest=replace(bundle.manifest, images=changed)), tiny)
        assert rule.passed is False and said in rule.detail


def test_a_model_without_thumbnails_is_held_to_have_none(bundle: Bundle, tiny: LoadedModel) -> None:
    config = replace(tiny.config, use_thumbnail=False)
    model = PVC(config).eval()
    model.load_state_dict(tiny.model.state_dict())
    plain = replace(tiny, model=model)
    rule = compare_tiles(bundle, plain)
    assert rule.passed is False and "an image is cut into 7 tiles, expected 6" in rule.detail
    images = model_facts(plain)["images"]
    without = replace(bundle, manifest=replace(bundle.manifest, images=images))
    rule = compare_tiles(without, plain)
    assert rule.passed and rule.detail == "images of 6 and 6 tiles, every pixel"
    (said,) = ask_about_tiles(without, plain).conversations
    assert said.fault(kl_limit("fp32")) is None and said.equal and said.num_said == 8


def test_an_image_that_does_not_fit_is_not_asked_about(bundle: Bundle, tiny: LoadedModel) -> None:
    many = replace(tiny, model=PVC.random(replace(TINY, max_image_tiles=30), seed=0))
    (reason,) = ask_about_tiles(bundle, many).not_executed.values()
    assert reason.startswith("an image of 31 tiles and a question need") and "but the context has 512" in reason
    many = replace(tiny, model=PVC.random(replace(TINY, max_image_tiles=30, use_thumbnail=False), seed=0))
    (reason,) = ask_about_tiles(bundle, many).not_executed.values()
    assert reason.startswith("an image of 30 tiles and a question need")
