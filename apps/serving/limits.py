"""What a client may use up: bytes, pixels, frames, requests a second, time. Each limit is a number somebody can set."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..web.orders import Bucket
from .errors import Refused, come_again, too_large

MIB = 1024 * 1024
MOST_PIXELS = 7680 * 4320
MOST_CLIENTS = 4096
"""Whose rates are remembered; the one that was heard of least lately is forgotten first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one request, of one client, and of all together.

    body_bytes      of a request; all_bodies_bytes of those that are being read or answered at once
    picture_bytes   of one picture, as it is sent; picture_pixels: width x height, known before it is decoded
    pictures        images in a request, of all its messages
    video_frames    that a request may have; default_frames: that are taken of a video that says nothing of it
    video_fps       frames per second that are taken of a video, unless it asks for others
    video_s         of a longer one nothing is decoded
    text_chars      of all texts of a request
    messages        of a request
    answer_tokens   that an answer may have; default_tokens: where a request says nothing of it
    rate, burst     requests of one client: a second, and at once
    body_s          until all of a body must be here
    send_s          that a client may take for each part of an answer
    """

    body_bytes: int = 64 * MIB
    all_bodies_bytes: int = 512 * MIB
    picture_bytes: int = 16 * MIB
    picture_pixels: int = MOST_PIXELS
    pictures: int = 32
    video_frames: int = 128
    default_frames: int = 32
    video_fps: float = 2.0
    video_s: float = 600.0
    text_chars: int = 65536
    messages: int = 256
    answer_tokens: int = 4096
    default_tokens: int = 256
    rate: float = 100.0
    burst: int = 200
    body_s: float = 60.0
    send_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


class Rates:
    """A bucket a client."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, client: str) -> None:
        """Raises Refused, with 429, for one request too many."""
        bucket = self._buckets.pop(client, None)
        if bucket is None:
            bucket = Bucket(self._limits.rate, self._limits.burst, clock=self._clock)
        self._buckets[client] = bucket
        while len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if not bucket.take():
            raise come_again(
                f"more than {self._limits.rate:g} requests a second come from this client",
                after_s=1 / self._limits.rate, code="rate_limit_exceeded",
            )  # fmt: skip


class Bodies:
    """Bytes of the bodies that are here now, of all requests."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.num_bytes = limits, 0

    def take(self, num_bytes: int) -> None:
        """Raises Refused, with 429, where that is more than there may be."""
        if self.num_bytes + num_bytes > self._limits.all_bodies_bytes:
            raise come_again("the requests that are being answered have taken all memory there is", after_s=1.0)
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes


def require_length(header: str | None, limit: int) -> None:
    """Raises Refused for a Content-Length that is none, or more than may be."""
    if header is None:
        return
    if not header.isdecimal():
        raise Refused("Content-Length is no number of bytes")
    if int(header[:20]) > limit:
        raise body_too_large(limit)


def body_too_large(limit: int) -> Refused:
    return too_large(f"the body has more than {limit} bytes; send less, or smaller pictures")
