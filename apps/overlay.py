"""What is written over a frame: how fast and how late at the top, question and answer at the bottom.

Where the source knows the truth, it stands below the answer, which gets a tick or a cross. These are drawn, as few
fonts have them, and differ in more than their colour.
Drawn on a copy, on darkened strips, so that it is readable on any picture and the model never sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from engines.synthetic import Frame

from .fonts import Font, drawable

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)  # blue, green, red, as the frames are
YELLOW: Color = (60, 220, 255)
GREY: Color = (205, 205, 205)
GREEN: Color = (90, 220, 90)
RED: Color = (90, 90, 255)
SHADE = 0.35  # of the picture's brightness stays under the text
MAX_SHARE = 0.5  # of the height, for the text at the top and at the bottom each
GAP = "   "  # between figures; a line is only broken here
RANDOM_WEIGHTS = "random weights: these tokens mean nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What an overlay says.

    answer    None before the first one
    truth     the right answer; None where it is not known
    is_right  None if the answer is not graded
    score     how many were right so far, else empty
    notice    one line that matters now, else empty
    """

    fps: float
    latency_ms: float
    frame_index: int
    num_dropped: int
    context_rows: int
    context: int
    num_restarts: int
    question: str
    answer: str | None
    answer_index: int
    random_weights: bool
    truth: str | None = None
    is_right: bool | None = None
    score: str = ""
    notice: str = ""


class Line(NamedTuple):
    """`mark` stands in front of the text: true is a tick, false a cross."""

    text: str
    font: Font
    color: Color
    mark: bool | None = None


def annotate(frame_bgr: Frame, status: Status) -> Frame:
    """A copy of the frame (H, W, 3) uint8 BGR with the status on it."""
    image: Frame = frame_bgr.copy()
    height, width, _ = image.shape
    size = text_size(height, width)
    top = _lines(_figures(status), size, width, WHITE, separator=GAP)
    top += _lines(status.notice, size, width, YELLOW) if status.notice else ()
    bottom = _lines(f"Q: {status.question}", size, width, GREY)
    bottom += _lines(RANDOM_WEIGHTS, size, width, YELLOW) if status.random_weights else ()
    bottom += _marked(_lines(_answer(status), size, width - _mark_room(size), WHITE), status.is_right)
    bottom += _lines(f"Truth: {status.truth}", size, width, GREY) if status.truth is not None else ()
    room = max(1, int(height * MAX_SHARE) // _line_height(size))
    if len(bottom) > room:
        bottom = bottom[: room - 1] + _lines("...", size, width, WHITE)
    _strip(image, bottom, size, at_bottom=True)
    _strip(image, top[:room], size, at_bottom=False)
    return image


def text_size(height: int, width: int) -> int:
    """Pixels of the font: a constant share of the picture, and never too small to read."""
    return max(11, round(min(height, width) / 28))


def _figures(status: Status) -> str:
    figures = [
        f"{status.fps:.1f} fps",
        f"latency {status.latency_ms:.0f} ms",
        f"dropped {status.num_dropped}",
        f"frame {status.frame_index}",
        f"context {status.context_rows}/{status.context}",
    ]
    figures += [f"restarts {status.num_restarts}"] * (status.num_restarts > 0)
    return GAP.join(figures + [status.score] * (status.score != ""))


def _answer(status: Status) -> str:
    """No answer where the weights are random, so it is not called one."""
    if status.answer is None:
        return "A: ..."
    return f"{'tokens' if status.random_weights else 'A'} (frame {status.answer_index}): {status.answer}"


def _marked(lines: tuple[Line, ...], mark: bool | None) -> tuple[Line, ...]:
    return (*(line._replace(mark=mark) for line in lines[:1]), *lines[1:])


@lru_cache(maxsize=64)
def _lines(text: str, size: int, width: int, color: Color, *, separator: str = " ") -> tuple[Line, ...]:
    """The text broken into lines that fit the width, all in one font; a word longer than a line is broken as well."""
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
    return tuple(Line(text=row, font=font, color=color) for row in rows)


def _strip(image: Frame, lines: tuple[Line, ...], size: int, *, at_bottom: bool) -> None:
    """Darken a strip over the whole width, in place, and write the lines on it."""
    margin, step = _margin(size), _line_height(size)
    height = min(len(lines) * step + margin, image.shape[0])
    region = image[image.shape[0] - height :] if at_bottom else image[:height]
    picture = Image.fromarray((region * np.float32(SHADE)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        left, top = margin, margin // 2 + row * step
        if line.mark is not None:
            _draw_mark(draw, left, top, size, is_tick=line.mark)
            left += _mark_room(size)
        draw.text((left, top), line.text, font=line.font, fill=line.color)
    region[:] = np.asarray(picture)


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


def _line_height(size: int) -> int:
    return round(size * 1.35)
