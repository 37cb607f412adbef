"""What a page asks for: small JSON objects with a "do", each read into a command or refused in one sentence."""

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
    """The sender's own camera, on or off."""

    on: bool


class Reader:
    """Reads orders. Sources that a page may choose: cameras, streams, the synthetic one, its own camera, what the
    session began with, and videos in one folder. A pipeline or any other file could read and write what it likes."""

    def __init__(self, *, files: Path | None, given: str = "") -> None:
        """given: the source as the command line had it."""
        self._files, self._given = files, given

    def read(self, text: str) -> Command | Camera:
        """Raises Refused."""
        if len(text) > MAX_CHARS:
            raise Refused(f"a message has at most {MAX_CHARS} characters")
        try:
            order = json.loads(text)
        except (ValueError, RecursionError):
            raise Refused("a message is one JSON object") from None
        if not isinstance(order, dict):
            raise Refused("a message is one JSON object")
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
        raise Refused("there is no such order")

    def _address(self, source: Any) -> Address:
        if not isinstance(source, str) or not source.strip() or not source.isprintable():
            raise Refused("a source is a text, such as 0, rtsp://HOST/PATH or synthetic")
        try:
            address = parse_address(source)
        except MediaError as error:
            raise Refused(error.what) from None
        if source.strip() == self._given.strip():
            return address
        if address.kind == "pipeline":
            raise Refused("a pipeline is given on the command line only")
        if address.kind == "url" and not source.strip().lower().startswith(SCHEMES):
            raise Refused(f"a stream begins with {', '.join(SCHEMES)}")
        if address.kind == "camera" and not address.target.removeprefix("/dev/video").isdecimal():
            raise Refused("a camera is a number, or /dev/video and a number")
        if address.kind == "file":
            return self._file(address)
        return address

    def _file(self, address: Address) -> Address:
        if self._files is None:
            raise Refused("files are given on the command line; --web-files FOLDER lets the page choose among some")
        folder = self._files.resolve()
        path = (folder / address.target).resolve()  # also of one with ../ or a link in it
        if not path.is_relative_to(folder) or not (path.exists() or is_picture_sequence(str(path))):
            raise Refused(f"there is no {address.name} in the folder of --web-files")
        return Address(kind="file", target=str(path), name=address.name)


class Bucket:
    """At most `rate` a second, and `burst` at once."""

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = float(burst), clock()

    def take(self) -> bool:
        """False if it is empty."""
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
        raise Refused("a question is empty")
    if len(question) > LONGEST_QUESTION:
        raise Refused(f"a question has at most {LONGEST_QUESTION} characters")
    if question != question.encode(errors="replace").decode():
        raise Refused("a question is not valid text")
    return " ".join(question.split())


def _flag(order: dict[str, Any], name: str) -> bool:
    value = order.get(name)
    if not isinstance(value, bool):
        raise Refused(f'"{name}" is true or false')
    return value
