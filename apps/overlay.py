"""What is written over a frame: how fast and how late at the top, question and answer at the bottom.

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
SHADE = 0.35  # of the picture's brightness stays under the text
MAX_SHARE = 0.5  # of the height, for the text at the top and at the bottom each
GAP = "   "  # between figures; a line is only broken here
RANDOM_WEIGHTS = "random weights: these tokens mean nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What an overlay says. notice: one line that matters now, else empty; answer: None before the first one."""

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
    notice: str = ""


class Line(NamedTuple):
    text: str
    font: Font
    color: Color


def annotate(frame_bgr: Frame, status: Status) -> Frame:
    """A copy of the frame (H, W, 3) uint8 BGR with the status on it."""
    image: Frame = frame_bgr.copy()
    height, width, _ = image.shape
    size = text_size(height, width)
    top = _lines(_figures(status), size, width, WHITE, separator=GAP)
    top += _lines(status.notice, size, width, YELLOW) if status.notice else ()
    bottom = _lines(f"Q: {status.question}", size, width, GREY)
    bottom += _lines(RANDOM_WEIGHTS, size, width, YELLOW) if status.random_weights else ()
    bottom += _lines(_answer(status), size, width, WHITE)
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
    return GAP.join(figures + [f"restarts {status.num_restarts}"] * (status.num_restarts > 0))


def _answer(status: Status) -> str:
    """No answer where the weights are random, so it is not called one."""
    if status.answer is None:
        return "A: ..."
    return f"{'tokens' if status.random_weights else 'A'} (frame {status.answer_index}): {status.answer}"


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
        draw.text((margin, margin // 2 + row * step), line.text, font=line.font, fill=line.color)
    region[:] = np.asarray(picture)


def _margin(size: int) -> int:
    return size // 2


def _line_height(size: int) -> int:
    return round(size * 1.35)
