"""Limits on what a client may use: bytes, pixels, frames, requests per second, time. All of them can be set."""

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
"""Number of clients whose rates are tracked; the least recently seen is forgotten first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits per request, per client, and in total.

    body_bytes      size of a request; all_bodies_bytes: total of the requests being read or answered
    picture_bytes   size of one picture as sent; picture_pixels: width x height, checked before decoding
    pictures        images per request, over all its messages
    video_frames    maximum frames per video; default_frames: maximum if the request sets none
    video_fps       frames per second taken from a video, unless the request sets a rate
    video_s         maximum length of a video; a longer one is refused
    text_chars      characters of all texts in a request
    messages        messages per request
    answer_tokens   maximum tokens per answer; default_tokens: if the request sets no number
    rate, burst     requests of one client: per second, and in a burst
    body_s          time to receive a body
    send_s          time a client may take to read each part of an answer
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
    """A token bucket per client."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request. Raises Refused, with 429, over the rate limit."""
        bucket = self._buckets.pop(client, None)
        if bucket is None:
            bucket = Bucket(self._limits.rate, self._limits.burst, clock=self._clock)
        self._buckets[client] = bucket
        while len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if not bucket.take():
            raise come_again(
                f"this client sends more than {self._limits.rate:g} requests per second",
                after_s=1 / self._limits.rate, code="rate_limit_exceeded",
            )  # fmt: skip


class Bodies:
    """Counts the bytes of all request bodies in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.num_bytes = limits, 0

    def take(self, num_bytes: int) -> None:
        """Count bytes. Raises Refused, with 429, over the limit."""
        if self.num_bytes + num_bytes > self._limits.all_bodies_bytes:
            raise come_again("the requests in progress use all memory allowed for request bodies", after_s=1.0)
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes


def require_length(header: str | None, limit: int) -> None:
    """Raise Refused for a Content-Length that is not a number, or over the limit."""
    if header is None:
        return
    if not header.isdecimal():
        raise Refused("Content-Length is not a whole number of bytes")
    if int(header[:20]) > limit:
        raise body_too_large(limit)


def body_too_large(limit: int) -> Refused:
    return too_large(f"the body is larger than {limit} bytes; send less data or smaller pictures")
