"""Pictures and videos inside a request, as data URLs. No other address is fetched: it could be one of this network."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from .errors import Refused

PLAIN = "data:image/jpeg;base64,..."
JPEGS = "video/jpeg"
"""A video as JPEGs with commas between them, each in base64 of its own."""


class DataURL(NamedTuple):
    """kind: in lower case, such as image/png. texts: base64, one but for JPEGS."""

    kind: str
    texts: list[str]


def read_data_url(url: str, *, param: str) -> DataURL:
    """Raises Refused for every other address, and for data that is not base64."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.lower() != "data":
        what = f"'{url[:40]}' is an address, and none is fetched here" if colon else "that is no data URL"
        raise Refused(f"{what}; send the data itself: {PLAIN}", param=param, code="invalid_url")
    head, comma, data = rest.partition(",")
    kind, *parameters = [part.strip().lower() for part in head.split(";")]
    if not comma or "base64" not in parameters:
        raise Refused(f"the data URL is not one of base64: {PLAIN}", param=param, code="invalid_url")
    return DataURL(kind, data.split(",") if kind == JPEGS else [data])


def decode_base64(text: str, *, param: str) -> bytes:
    """Raises Refused."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("what follows 'base64,' is no base64", param=param, code="invalid_base64") from None
