"""Pictures and videos in a request, as data URLs. No other URL is fetched: it could point into this network."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from .errors import Refused

PLAIN = "data:image/jpeg;base64,..."
JPEGS = "video/jpeg"
"""A video as JPEGs separated by commas, each encoded in base64."""


class DataURL(NamedTuple):
    """kind: in lower case, such as image/png. texts: base64, a single one except for JPEGS."""

    kind: str
    texts: list[str]


def read_data_url(url: str, *, param: str) -> DataURL:
    """Parse a data URL. Raises Refused for any other URL, and for data that is not marked as base64."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.lower() != "data":
        what = f"'{url[:40]}' is a URL to fetch, which is not supported" if colon else "this is not a data URL"
        raise Refused(f"{what}; send the data itself: {PLAIN}", param=param, code="invalid_url")
    head, comma, data = rest.partition(",")
    kind, *parameters = [part.strip().lower() for part in head.split(";")]
    if not comma or "base64" not in parameters:
        raise Refused(f"the data URL is not in base64; expected {PLAIN}", param=param, code="invalid_url")
    return DataURL(kind, data.split(",") if kind == JPEGS else [data])


def decode_base64(text: str, *, param: str) -> bytes:
    """Decode base64. Raises Refused."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("the data after 'base64,' is not valid base64", param=param, code="invalid_base64") from None
