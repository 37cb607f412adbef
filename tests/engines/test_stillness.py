"""Black and unchanged pictures: reported after a while, with the same words while they last, and not for live ones."""

from __future__ import annotations

import numpy as np

from engines.stillness import Stillness
from engines.synthetic import render_clip


def watch(pictures: list[np.ndarray], *, fps: float) -> tuple[list[str], Stillness]:
    stillness = Stillness()
    return [stillness.add(picture, index / fps) for index, picture in enumerate(pictures)], stillness


def noisy(level: int, index: int, amount: int) -> np.ndarray:
    noise = np.random.default_rng(index).integers(-amount, amount + 1, (48, 64, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


def test_black_is_reported_after_two_seconds_and_no_longer_than_it_lasts() -> None:
    said, stillness = watch([noisy(12, index, 8) for index in range(40)] + [noisy(90, 0, 8)], fps=10)
    assert said[:20] == [""] * 20 and set(said[20:40]) == {"the picture has been black since 0.0 s"} and said[40] == ""
    assert stillness.black_s == 3.9 and stillness.summary() == ["the picture is black for 3.9 s"]


def test_a_dark_picture_with_a_light_in_it_is_not_black() -> None:
    night = noisy(10, 0, 5)
    night[20:30, 30:40] = 200  # 3 % of the picture
    said, _ = watch([night] * 40, fps=10)
    assert not any("black" in text for text in said)


def test_a_short_clip_that_is_black_throughout_is_reported_at_its_end() -> None:
    _, stillness = watch([noisy(0, 0, 0)] * 5, fps=10)
    assert stillness.summary() == ["every picture is black"]
    _, stillness = watch([noisy(0, 0, 0)] * 5 + [noisy(90, 0, 0)], fps=10)
    assert stillness.summary() == []


def test_unchanged_is_reported_after_five_seconds_though_the_codec_makes_noise() -> None:
    said, stillness = watch([noisy(100, index, 5) for index in range(70)], fps=10)
    assert said[:50] == [""] * 50 and set(said[50:]) == {"the picture has not changed since 0.0 s"}
    assert stillness.summary() == ["the picture does not change for 6.9 s"] and stillness.to_json()["black_s"] == 0


def test_a_small_thing_that_moves_is_a_change() -> None:
    pictures = []
    for index in range(80):
        picture = np.full((448, 448, 3), 120, np.uint8)
        picture[200:210, 5 * index : 5 * index + 10] = 30
        pictures.append(picture)
    assert not any(watch(pictures, fps=10)[0])


def test_a_slow_drift_is_a_change() -> None:
    said, _ = watch([np.full((48, 64, 3), 100 + index // 2, np.uint8) for index in range(100)], fps=10)
    assert not any(said)


def test_moving_shapes_are_alive() -> None:
    said, stillness = watch(list(render_clip(80, seed=1, width=192, height=144)), fps=10)
    assert not any(said) and stillness.summary() == []
