"""A page's requests: small JSON objects with a "do", each parsed into a command or refused with one sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import MediaError
from engines.picture_sequences import is_picture_sequence

from ..addresses import Address, parse_address
from ..browser import Refused
from ..listeners import Ask, Command, Pause, Reset, SetQuestion, Switch, TakeSnapshot

MAX_CHARS = 4096
LONGEST_QUESTION = 1000
SCHEMES = ("rtsp://", "rtsps://", "http://", "https://", "rtmp://", "srt://", "udp://", "tcp://")


@dataclass(frozen=True, slots=True)
class Camera:
    """Turn the sender's own camera on or off."""

    on: bool


class Reader:
    """Parses orders. A page may choose cameras, streams, the synthetic source, its own camera, the session's first
    source, and videos in one folder. Pipelines and other files are not allowed: they could read and write anything."""

    def __init__(self, *, files: Path | None, given: str = "") -> None:
        """given: the source from the command line."""
        self._files, self._given = files, given

    def read(self, text: str) -> Command | Camera:
        """Parse an order. Raises Refused."""
        if len(text) > MAX_CHARS:
            raise Refused(f"a message may have at most {MAX_CHARS} characters")
        try:
            order = json.loads(text)
        except (ValueError, RecursionError):
            raise Refused("a message must be one JSON object") from None
        if not isinstance(order, dict):
            raise Refused("a message must be one JSON object")
        match order.get("do"):
            case "ask":
                return Ask(question=_question(order))
            case "question":
                return SetQuestion(question=_question(order))
            case "pause":
                return Pause(paused=_flag(order, "paused"))
            case "reset":
                return Reset()
            case "snapshot":
                return TakeSnapshot()
            case "switch":
                return Switch(address=self._address(order.get("source")))
            case "camera":
                return Camera(on=_flag(order, "on"))
        raise Refused('this value of "do" is unknown')

    def _address(self, source: Any) -> Address:
        if not isinstance(source, str) or not source.strip() or not source.isprintable():
            raise Refused("a source must be a text such as 0, rtsp://HOST/PATH or synthetic")
        try:
            address = parse_address(source)
        except MediaError as error:
            raise Refused(error.what) from None
        if source.strip() == self._given.strip():
            return address
        if address.kind == "pipeline":
            raise Refused("a pipeline may be given only on the command line")
        if address.kind == "url" and not source.strip().lower().startswith(SCHEMES):
            raise Refused(f"a stream's address must begin with one of {', '.join(SCHEMES)}")
        if address.kind == "camera" and not address.target.removeprefix("/dev/video").isdecimal():
            raise Refused("a camera must be a number, or /dev/video followed by a number")
        if address.kind == "file":
            return self._file(address)
        return address

    def _file(self, address: Address) -> Address:
        if self._files is None:
            raise Refused(
                "files may be given only on the command line; --web-files FOLDER allows the files in a folder"
            )
        folder = self._files.resolve()
        path = (folder / address.target).resolve()  # resolves ../ and links
        if not path.is_relative_to(folder) or not (path.exists() or is_picture_sequence(str(path))):
            raise Refused(f"{address.name} is not in the folder of --web-files")
        return Address(kind="file", target=str(path), name=address.name)


class Bucket:
    """A token bucket: at most `rate` per second, in bursts of up to `burst`."""

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = float(burst), clock()

    def take(self) -> bool:
        """Take one token. False if the bucket is empty."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self._rate, float(self._burst))
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _question(order: dict[str, Any]) -> str:
    question = order.get("question")
    if not isinstance(question, str) or not question.strip():
        raise Refused("the question is empty")
    if len(question) > LONGEST_QUESTION:
        raise Refused(f"the question may have at most {LONGEST_QUESTION} characters")
    if question != question.encode(errors="replace").decode():
        raise Refused("the question is not valid text")
    return " ".join(question.split())


def _flag(order: dict[str, Any], name: str) -> bool:
    value = order.get(name)
    if not isinstance(value, bool):
        raise Refused(f'"{name}" must be true or false')
    return value
