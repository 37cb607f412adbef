"""Formatting of numbers and of foreign text in a report."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from math import isinf, isnan

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that are not allowed in a page or an XML file, and those that change the order in which text is shown."""


def clean(text: str) -> str:
    """Text from a model or a user, with every control character spelled out: '\\x1b'."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def number(value: float) -> str:
    """Two digits: '1.2e-3', '0', 'NaN', '∞'."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def plain(value: float) -> str:
    """Three digits, without an exponent for common sizes: '65504', '3.41', '1.2e-5'."""
    if isnan(value) or isinf(value) or value == 0:
        return number(value)
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 else number(value)


def share(value: float) -> str:
    """A fraction of a limit: '25%', '0.3%', '12×', '∞'."""
    if isnan(value) or isinf(value):
        return number(value)
    if value >= 10:
        return f"{value:.0f}×" if value < 1e4 else f"{number(value)}×"
    percent = 100 * value
    if percent == 0:
        return "0%"
    if percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 10 else f"{percent:.0f}%"


def count(number: int, what: str) -> str:
    """'1 row', '2 rows'."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def when(utc: str) -> str:
    """'2026-11-26T18:20:00+00:00' -> '2026-11-26 18:20 UTC'. Anything else is returned unchanged."""
    try:
        moment = datetime.fromisoformat(utc.replace("Z", "+00:00"))
    except ValueError:
        return utc
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else utc
