"""Formatting of foreign text, counts and times in a report."""

from __future__ import annotations

import re
from datetime import datetime, timezone

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that are not allowed in a page or an XML file, and those that change the order in which text is shown."""


def clean(text: str) -> str:
    """Text from a model or a user, with every control character spelled out: '\\x1b'."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


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
