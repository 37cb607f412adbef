"""The text around a frame: rates and latencies above it, question and answer below.

If the source knows the truth, it appears below the answer, which gets a tick or a cross. These are drawn, since few
fonts have them, and differ in shape as well as colour.
The picture itself is unchanged, since the model reads all of it. For one frame size the strips always have the same
height, since a video has one size. Text that does not fit is cut and ends with '...'.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from engines.synthetic import Frame

from .fonts import Font, drawable
from .score import Grade
from .watcher import Reply

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)  # blue, green, red, like the frames
YELLOW: Color = (60, 220, 255)
GREY: Color = (205, 205, 205)
GREEN: Color = (90, 220, 90)
RED: Color = (90, 90, 255)
BACKGROUND: Color = (28, 24, 24)
GAP = "   "  # between figures; lines break only here
RANDOM_WEIGHTS = "random weights: these tokens mean nothing"
ELLIPSIS = "..."
LONG_FIGURES = "right 999 of 999, 100 %   99.9 fps   latency 999 ms   dropped 9999   frame 99999   context 9999/9999"
ROWS_BELOW = 5
MAX_FIGURE_ROWS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The text around a frame.

    figures  the counts and rates, the most important first: a long notice hides the last ones
    reply    None before the first one
    notice   one line that matters now, or empty
    saying   an answer being decoded, shown instead of the last one
    """

    figures: tuple[str, ...]
    question: str
    reply: Reply | None
    random_weights: bool
    notice: str = ""
    saying: str = ""


class Line(NamedTuple):
    """A line of text. `mark` goes in front: true is a tick, false a cross."""

    text: str
    font: Font
    color: Color
    mark: bool | None = None


def annotate(frame_bgr: Frame, status: Status) -> Frame:
    """The frame (H, W, 3) uint8 BGR, unchanged, between two strips of text. Height and width are even, for encoders."""
    height, width, _ = frame_bgr.shape
    size = text_size(height, width)
    rows_above = 1 + min(len(_lines(LONG_FIGURES, size, width, WHITE, separator=GAP)), MAX_FIGURE_ROWS)
    top = _strip_height(rows_above, size)
    total = top + height + _strip_height(ROWS_BELOW, size)
    image = np.full((total + total % 2, width + width % 2, 3), BACKGROUND, np.uint8)
    image[top : top + height, :width] = frame_bgr
    _write(image[:top], _above(status, size, width, rows_above), size)
    _write(image[top + height :], _below(status, size, width), size)
    return image


def _above(status: Status, size: int, width: int, num_rows: int) -> tuple[Line, ...]:
    """The notice gets the lines it needs; the figures get the rest."""
    notice = _lines(status.notice, size, width, YELLOW, num_rows=num_rows - 1) if status.notice else ()
    figures = _lines(GAP.join(status.figures), size, width, WHITE, separator=GAP, num_rows=num_rows - len(notice))
    return (*figures, *notice)


def _below(status: Status, size: int, width: int) -> tuple[Line, ...]:
    """Truth and warning get space first, then the answer; the question gets the rest, at least one line."""
    grade = Grade() if status.reply is None else status.reply.grade
    truth = _lines(f"Truth: {grade.truth}", size, width, GREY, num_rows=2) if grade.truth is not None else ()
    warning = _lines(RANDOM_WEIGHTS, size, width, YELLOW, num_rows=1) if status.random_weights else ()
    room = ROWS_BELOW - len(truth) - len(warning)
    answer = _lines(_answer(status), size, width - _mark_room(size), WHITE, num_rows=room - 1)
    question = _lines(f"Q: {status.question}", size, width, GREY, num_rows=room - len(answer))
    return (*question, *warning, answer[0]._replace(mark=grade.is_right), *answer[1:], *truth)


def text_size(height: int, width: int) -> int:
    """Font size in pixels: a constant share of the picture, never too small to read."""
    return max(11, round(min(height, width) / 28))


def _answer(status: Status) -> str:
    """The answer's line; with random weights it is labelled tokens, not an answer."""
    if status.saying:
        return f"A: {status.saying}"
    if status.reply is None:
        return "A: ..."
    return f"{'tokens' if status.random_weights else 'A'} (frame {status.reply.frame_index}): {status.reply.text}"


@lru_cache(maxsize=64)
def _lines(
    text: str, size: int, width: int, color: Color, *, separator: str = " ", num_rows: int | None = None
) -> tuple[Line, ...]:
    """Break the text into lines that fit the width, in one font; a word longer than a line is broken too.

    Lines past `num_rows` are cut off.
    """
    clean, font = drawable(text if separator != " " else " ".join(text.split()), size)
    room, rows = max(width - 2 * _margin(size), 1), [""]
    for word in clean.split(separator):
        joined = rows[-1] + separator + word if rows[-1] else word
        if font.getlength(joined) <= room:
            rows[-1] = joined
            continue
        if rows[-1]:
            rows.append("")
        for char in word:
            if rows[-1] and font.getlength(rows[-1] + char) > room:
                rows.append("")
            rows[-1] += char
    if num_rows is not None and len(rows) > num_rows:
        last = rows[num_rows - 1]
        while last and font.getlength(last + ELLIPSIS) > room:
            last = last[:-1]
        rows = [*rows[: num_rows - 1], last + ELLIPSIS]
    return tuple(Line(text=row, font=font, color=color) for row in rows)


def _write(strip: Frame, lines: tuple[Line, ...], size: int) -> None:
    """Write the lines on a strip of an image, in place."""
    picture = Image.fromarray(strip)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        left, top = _margin(size), _margin(size) // 2 + row * _line_height(size)
        if line.mark is not None:
            _draw_mark(draw, left, top, size, is_tick=line.mark)
            left += _mark_room(size)
        draw.text((left, top), line.text, font=line.font, fill=line.color)
    strip[:] = np.asarray(picture)


def _draw_mark(draw: ImageDraw.ImageDraw, left: int, top: int, size: int, *, is_tick: bool) -> None:
    """A tick or a cross, as high as a capital letter."""
    tick = [[(0.0, 0.6), (0.3, 0.9), (0.8, 0.2)]]
    cross = [[(0.1, 0.2), (0.75, 0.9)], [(0.75, 0.2), (0.1, 0.9)]]
    for stroke in tick if is_tick else cross:
        points = [(left + x * size, top + y * size) for x, y in stroke]
        draw.line(points, fill=GREEN if is_tick else RED, width=max(2, size // 6), joint="curve")


def _mark_room(size: int) -> int:
    return round(1.1 * size)


def _margin(size: int) -> int:
    return size // 2


def _strip_height(num_rows: int, size: int) -> int:
    return num_rows * _line_height(size) + _margin(size)


def _line_height(size: int) -> int:
    return round(size * 1.35)
