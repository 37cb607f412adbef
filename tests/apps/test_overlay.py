"""The overlay: its text is drawn around the whole picture, readable, in any script, at any size."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from apps import fonts, overlay
from apps.fonts import drawable
from apps.overlay import GREEN, RED, YELLOW, Status, _lines, annotate, text_size
from apps.report import figures
from apps.score import Grade
from apps.watcher import Reply
from engines.synthetic import Frame

REPLY = Reply(
    question="What happens?", text="A red panda climbs.", frame_index=880, time_s=88.0, finished=True, prefill_ms=1.0,
    decode_ms=2.0, margin=1.5, latency_ms=40.0,
)  # fmt: skip
STATUS = Status(
    figures=("12.3 fps", "latency 57 ms", "dropped 12", "frame 890", "context 345/2048"),
    question="What happens?",
    reply=REPLY,
    random_weights=False,
)
HEIGHT, WIDTH = SHAPE = (360, 480)


def said(text: str, **grade: object) -> Status:
    """STATUS with this answer and its grade."""
    return replace(STATUS, reply=replace(REPLY, text=text, grade=Grade(**grade)))  # type: ignore[arg-type]


def noise(height: int, width: int) -> Frame:
    return np.random.default_rng(0).integers(100, 256, (height, width, 3), dtype=np.uint8)


def draw(status: Status) -> tuple[Frame, Frame, Frame]:
    """Return the strip above a picture, the picture, and the strip below it."""
    frame = noise(*SHAPE)
    image = annotate(frame, status)
    top = place_of(frame, image)
    return image[:top], image[top : top + HEIGHT], image[top + HEIGHT :]


def place_of(frame: Frame, image: Frame) -> int:
    """Return the row of the image at which the frame begins. The frame must be there whole and unchanged."""
    height, width, _ = frame.shape
    (top,) = (row for row in range(len(image) - height + 1) if np.array_equal(image[row : row + height, :width], frame))
    return top


def rows_of_text(strip: Frame) -> int:
    """Count the lines of text on a strip."""
    written = np.any(strip.max(axis=2) > 110, axis=1)
    return int(np.sum(written[1:] > written[:-1])) + int(written[0])


def num_of_color(image: Frame, color: tuple[int, int, int]) -> int:
    return int(np.all(image == np.array(color, np.uint8), axis=2).sum())


def num_yellow(image: Frame) -> int:
    return num_of_color(image, YELLOW)


@pytest.mark.parametrize(
    "size", [(240, 320), (480, 640), (720, 1280), (1080, 1920), (448, 448), (640, 360), (241, 321)], ids=str
)
@pytest.mark.parametrize(
    "status", [STATUS, replace(said("i " * 900, truth="j " * 900), notice="k " * 900)], ids=["short", "long"]
)
def test_the_picture_is_there_unchanged_and_the_size_depends_on_nothing_else(
    size: tuple[int, int], status: Status
) -> None:
    frame = noise(*size)
    before = frame.copy()
    image = annotate(frame, status)
    assert np.array_equal(frame, before) and place_of(frame, image) > 0
    height, width, _ = image.shape
    assert height % 2 == width % 2 == 0 and width - size[1] in (0, 1) and height <= 1.6 * size[0]
    assert image.shape == annotate(frame, replace(STATUS, reply=None, random_weights=True)).shape


def test_text_stands_out_above_and_below() -> None:
    above, _, below = draw(STATUS)
    for strip in (above, below):
        assert int(strip.max()) - int(strip.min()) > 140


@pytest.mark.parametrize(
    "change",
    [
        *({"figures": (*STATUS.figures[:at], "changed", *STATUS.figures[at + 1 :])} for at in range(5)),
        {"figures": (*STATUS.figures, "rollovers 1")},
        {"notice": "camera 0 was lost"},
    ],
    ids=[*STATUS.figures, "rollovers", "notice"],
)
def test_every_figure_is_written_at_the_top(change: dict[str, object]) -> None:
    (above, _, below), (changed, _, same) = draw(STATUS), draw(replace(STATUS, **change))
    assert not np.array_equal(above, changed) and np.array_equal(below, same)


def test_figures_begin_with_the_score_and_end_with_rollovers_where_there_are_any() -> None:
    meter = SimpleNamespace(fps=12.34, latency_ms=56.7, num_dropped=12)
    watcher = SimpleNamespace(context_rows=345, context=2048, num_rollovers=0)
    assert figures(meter, watcher, "", 890) == STATUS.figures  # type: ignore[arg-type]
    watcher.num_rollovers = 1
    expected = ("right 17 of 20, 85 %", *STATUS.figures, "rollovers 1")
    assert figures(meter, watcher, "right 17 of 20, 85 %", 890) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "status",
    [
        replace(STATUS, question="What happened?"),
        said("A red panda sleeps."),
        replace(STATUS, reply=replace(REPLY, frame_index=881)),
        replace(STATUS, reply=None),
        said(REPLY.text, truth=REPLY.text),
    ],
    ids=["question", "answer", "answer's frame", "no answer yet", "truth"],
)
def test_question_and_answer_are_written_at_the_bottom(status: Status) -> None:
    (above, _, below), (same, _, changed) = draw(STATUS), draw(status)
    assert not np.array_equal(below, changed) and np.array_equal(above, same)


def test_a_right_answer_gets_a_tick_and_a_wrong_one_a_cross_of_another_shape() -> None:
    plain, tick, cross = (draw(said(REPLY.text, is_right=is_right))[2] for is_right in (None, True, False))
    assert [num_of_color(image, GREEN) > 10 for image in (plain, tick, cross)] == [False, True, False]
    assert [num_of_color(image, RED) > 10 for image in (plain, tick, cross)] == [False, False, True]
    assert not np.array_equal(np.any(tick != plain, axis=2), np.any(cross != plain, axis=2))


def test_the_truth_is_another_line_and_is_left_out_where_it_is_not_known() -> None:
    assert rows_of_text(draw(said("A cat.", truth="A dog."))[2]) == rows_of_text(draw(said("A cat."))[2]) + 1


def test_a_mark_leaves_room_for_the_whole_answer() -> None:
    plain, marked = (draw(said("i " * 90, is_right=mark))[2] for mark in (None, False))
    assert rows_of_text(plain) == rows_of_text(marked)  # the same line breaks
    assert marked[:, -4:].max() <= 90  # and no letter is cut


def test_random_weights_are_called_so_and_their_tokens_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_yellow(draw(STATUS)[2]) == 0
    assert num_yellow(draw(replace(STATUS, random_weights=True))[2]) > 100
    written: list[str] = []
    original = overlay._lines
    monkeypatch.setattr(overlay, "_lines", lambda text, *a, **k: written.append(text) or original(text, *a, **k))
    annotate(noise(*SHAPE), replace(STATUS, random_weights=True))
    assert "random weights: these tokens mean nothing" in written
    assert "tokens (frame 880): A red panda climbs." in written


def test_a_notice_is_yellow() -> None:
    assert num_yellow(draw(replace(STATUS, notice="context full: restarted at frame 7"))[0]) > 100


def test_a_long_answer_is_wrapped_and_then_cut_with_an_ellipsis() -> None:
    short, long, endless = (draw(said("a red panda climbs " * times))[2] for times in (1, 7, 200))
    assert rows_of_text(short) < rows_of_text(long) <= rows_of_text(endless) == 5
    size, text = text_size(*SHAPE), "a red panda climbs " * 200
    lines = _lines(text, size, 480, (255, 255, 255), num_rows=3)
    assert len(lines) == 3 and lines[2].text.endswith("...") and text.startswith(lines[0].text)
    assert max(line.font.getlength(line.text) for line in lines) <= 480
    assert _lines("a red panda", size, 480, (255, 255, 255), num_rows=1)[0].text == "a red panda"


def test_a_long_notice_takes_the_place_of_figures_and_a_long_answer_that_of_the_question() -> None:
    above, _, _ = draw(
        replace(STATUS, notice="the next scene would exceed 96 frames, as many as it was trained on " * 2)
    )
    assert rows_of_text(above) >= 2 and num_yellow(above) > 100 and num_of_color(above, (255, 255, 255)) > 50
    question = replace(said("a red panda climbs " * 200), question="What happens " * 100)
    assert rows_of_text(draw(question)[2]) == 5


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
    below, empty = draw(replace(said(text), question=text))[2], draw(replace(said(""), question=""))[2]
    assert not np.array_equal(below, empty)


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
    frame = noise(*size)
    image = annotate(frame, replace(said("climbs " * 30), notice="context full", random_weights=True))
    assert place_of(frame, image) > 0
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0


def test_text_grows_with_the_picture() -> None:
    assert text_size(48, 64) == text_size(200, 200) == 11
    assert text_size(1080, 1920) == text_size(1920, 1080) == 39 == round(2.16667 * text_size(504, 896))
