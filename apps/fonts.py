"""A font for any text, and the text with undrawable characters replaced.

Why: Pillow's built-in font is always available but covers little more than ASCII, so other texts get the first system
font that covers most of their characters. A character no font has becomes '?', not a box.
"""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "arial.ttf",
)
MISSING = "?"


@lru_cache(maxsize=256)
def drawable(text: str, size: int) -> tuple[str, Font]:
    """The text with every character that cannot be drawn replaced, and the font to draw it with at `size` pixels."""
    text = "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}" for char in text
    )
    fonts = _fonts()
    missing = [frozenset(char for char in set(text) if not _has_glyph(index, char)) for index in range(len(fonts))]
    best = min(range(len(fonts)), key=lambda index: len(missing[index]))
    return "".join(MISSING if char in missing[best] else char for char in text), _sized(best, size)


@lru_cache(maxsize=1)
def _fonts() -> tuple[Font, ...]:
    """Pillow's built-in font first, so that plain text looks the same on every machine."""
    return (_built_in(16), *(font for name in SYSTEM_FONTS if (font := _find(name)) is not None))


def _built_in(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # else this Pillow was built without FreeType
    return font


def _find(name: str) -> Font | None:
    try:
        return ImageFont.truetype(name, 16)
    except OSError:
        return None


@lru_cache(maxsize=64)
def _sized(index: int, size: int) -> Font:
    return _built_in(size) if index == 0 else _fonts()[index].font_variant(size=size)


@lru_cache(maxsize=8192)
def _has_glyph(index: int, char: str) -> bool:
    """Whether the font has the character: its drawing differs from that of U+FFFF, which is always missing."""
    font = _probe(index)
    return char == " " or bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))


@lru_cache(maxsize=16)
def _probe(index: int) -> Font:
    """The font without text shaping, which draws a circle under a lone accent and so hides that it is missing."""
    return _fonts()[index].font_variant(layout_engine=ImageFont.Layout.BASIC)
