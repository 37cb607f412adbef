"""The overlay: what it says is drawn, on a copy, readable on any picture, in any script, on any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apps import fonts
from apps.fonts import drawable
from apps.overlay import GREEN, RED, YELLOW, Status, _lines, annotate, text_size
from engines.synthetic import Frame

STATUS = Status(
    fps=12.34,
    latency_ms=56.7,
    frame_index=890,
    num_dropped=12,
    context_rows=345,
    context=2048,
    num_restarts=0,
    question="What happens?",
    answer="A red panda climbs.",
    answer_index=880,
    random_weights=False,
)
SHAPE = (360, 480, 3)


def grey(level: int) -> Frame:
    return np.full(SHAPE, level, np.uint8)


def strip_rows(level: int, status: Status) -> np.ndarray:
    """Which rows of a plain frame the overlay changed."""
    return np.any(annotate(grey(level), status) != level, axis=(1, 2))


def num_of_color(image: Frame, color: tuple[int, int, int]) -> int:
    return int(np.all(image == np.array(color, np.uint8), axis=2).sum())


def num_yellow(image: Frame) -> int:
    return num_of_color(image, YELLOW)


def test_the_model_s_frame_is_left_as_it_is() -> None:
    frame = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    before = frame.copy()
    image = annotate(frame, STATUS)
    assert np.array_equal(frame, before)
    assert image.shape == SHAPE and image.dtype == np.uint8 and not np.array_equal(image, frame)


@pytest.mark.parametrize("level", [0, 100, 255], ids=["black", "grey", "white"])
def test_text_stands_out_on_any_picture_and_the_middle_is_untouched(level: int) -> None:
    image = annotate(grey(level), STATUS)
    for strip in (image[:25], image[-45:]):
        assert int(strip.max()) - int(strip.min()) > 140
    assert np.all(image[120:240] == level)


@pytest.mark.parametrize(
    "change",
    [
        {"fps": 13.34},
        {"latency_ms": 57.7},
        {"frame_index": 891},
        {"num_dropped": 13},
        {"context_rows": 346},
        {"context": 4096},
        {"num_restarts": 1},
        {"score": "right 17 of 20, 85 %"},
        {"notice": "camera 0 was lost"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_figure_is_written_at_the_top(change: dict[str, object]) -> None:
    before, after = annotate(grey(90), STATUS), annotate(grey(90), replace(STATUS, **change))
    assert not np.array_equal(before[:80], after[:80]) and np.array_equal(before[200:], after[200:])


@pytest.mark.parametrize(
    "change",
    [
        {"question": "What happened?"},
        {"answer": "A red panda sleeps."},
        {"answer_index": 881},
        {"answer": None},
        {"truth": "A red panda climbs."},
    ],
    ids=["question", "answer", "answer's frame", "no answer yet", "truth"],
)
def test_question_and_answer_are_written_at_the_bottom(change: dict[str, object]) -> None:
    before, after = annotate(grey(90), STATUS), annotate(grey(90), replace(STATUS, **change))
    assert not np.array_equal(before[-80:], after[-80:]) and np.array_equal(before[:160], after[:160])


def test_a_right_answer_gets_a_tick_and_a_wrong_one_a_cross_of_another_shape() -> None:
    plain, tick, cross = (annotate(grey(90), replace(STATUS, is_right=is_right)) for is_right in (None, True, False))
    assert [num_of_color(image, GREEN) > 10 for image in (plain, tick, cross)] == [False, True, False]
    assert [num_of_color(image, RED) > 10 for image in (plain, tick, cross)] == [False, False, True]
    assert not np.array_equal(np.any(tick != plain, axis=2), np.any(cross != plain, axis=2))


def test_the_truth_is_another_line_and_is_left_out_where_it_is_not_known() -> None:
    written = strip_rows(90, replace(STATUS, truth="A red panda climbs."))
    assert written.sum() > strip_rows(90, STATUS).sum()


def test_a_mark_leaves_room_for_the_whole_answer() -> None:
    plain, marked = (annotate(grey(90), replace(STATUS, answer="i " * 300, is_right=mark)) for mark in (None, False))
    assert np.array_equal(np.any(plain != 90, axis=(1, 2)), np.any(marked != 90, axis=(1, 2)))  # the same line breaks
    assert marked[:, -4:].max() <= 90  # and no letter is cut


def test_random_weights_are_called_so_and_their_tokens_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_yellow(annotate(grey(90), STATUS)) == 0
    assert num_yellow(annotate(grey(90), replace(STATUS, random_weights=True))) > 100
    written: list[str] = []
    monkeypatch.setattr("apps.overlay._lines", lambda text, *_, **__: written.append(text) or ())
    annotate(grey(90), replace(STATUS, random_weights=True))
    assert "random weights: these tokens mean nothing" in written
    assert "tokens (frame 880): A red panda climbs." in written


def test_a_notice_is_yellow() -> None:
    assert num_yellow(annotate(grey(90), replace(STATUS, notice="context full: started again at frame 7"))) > 100


def test_a_long_answer_is_wrapped_and_takes_at_most_half_of_the_picture() -> None:
    short, long = strip_rows(90, STATUS), strip_rows(90, replace(STATUS, answer="a red panda climbs " * 200))
    assert short.sum() < long.sum()
    assert not long[60 : SHAPE[0] // 2 - 20].any() and long[SHAPE[0] // 2 + 30 :].all()


def test_no_line_is_wider_than_the_picture_even_of_one_long_word() -> None:
    text = "short " + "x" * 300 + " " + "wide words " * 20
    size = text_size(360, 480)
    lines = _lines(text, size, 480, (255, 255, 255))
    assert len(lines) > 5 and max(line.font.getlength(line.text) for line in lines) <= 480
    assert "".join(line.text for line in lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "text", ["Tür, naïve", "Мужчина", "一个男人", "🙂", "a\x1b[31m\x00b\u202e\n\tc", "\ud800", "\uffff"]
)
def test_any_text_is_drawn_without_an_exception_and_without_control_characters(text: str) -> None:
    clean, font = drawable(text, 20)
    assert clean.isprintable() and len(clean) == len(text) and font.getlength(clean) > 0
    image = annotate(grey(90), replace(STATUS, answer=text, question=text))
    assert not np.array_equal(image[-60:], annotate(grey(90), replace(STATUS, answer="", question=""))[-60:])


def test_what_no_font_has_becomes_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = (fonts.drawable, fonts._fonts, fonts._sized, fonts._has_glyph, fonts._probe)
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("no such font.ttf",))
    for cache in caches:
        cache.cache_clear()
    clean, _ = drawable("Tür “a” 门 \u0611 ~!", 20)
    for cache in caches:
        cache.cache_clear()
    assert clean == "T?r “a” ? ? ~!"


def test_plain_text_is_drawn_as_it_is_with_the_font_that_is_always_there() -> None:
    plain = "".join(map(chr, range(32, 127)))
    clean, font = drawable(plain, 20)
    assert clean == plain and font.getname()[0] == "Aileron"


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (24, 32), (48, 64), (121, 161)], ids=str)
def test_a_tiny_or_odd_frame_is_annotated_as_far_as_it_goes(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 200, np.uint8)
    image = annotate(frame, replace(STATUS, notice="context full", random_weights=True, answer="climbs " * 30))
    assert image.shape == frame.shape and not np.array_equal(image, frame)


def test_text_grows_with_the_picture() -> None:
    assert text_size(48, 64) == text_size(200, 200) == 11
    assert text_size(1080, 1920) == text_size(1920, 1080) == 39 == round(2.16667 * text_size(504, 896))
