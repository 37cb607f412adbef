"""Parsing of --source: the text a person types for a camera, a stream or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from engines.errors import MediaError
from engines.video import is_url, without_password

from .gstreamer import csi_pipeline, encoded
from .synthetic import SYNTHETIC

BROWSER = "browser"


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A source of frames. `name` is for people and reports and never contains a password.

    target  the text that is opened; for a CSI camera, its pipeline
    """

    kind: Literal["synthetic", "camera", "csi", "url", "pipeline", "file", "browser"]
    target: str
    name: str

    @property
    def is_live(self) -> bool:
        """True for a source that runs on whether or not its frames are read."""
        return self.kind in ("camera", "csi", "url", "pipeline", "browser")

    @property
    def may_wait(self) -> bool:
        """True if it may be a video that waits for the model; for an http address only opening it tells."""
        return not self.is_live or self.target.startswith(("http://", "https://"))

    @property
    def is_rtsp(self) -> bool:
        return self.kind == "url" and self.target.lower().startswith(("rtsp://", "rtsps://"))


def parse_address(text: str) -> Address:
    """Parse 'synthetic', 'browser', a camera's number or /dev/ path, a CSI camera (csi:0), a URL, a GStreamer pipeline
    (recognised by ' ! '), or else a file or pictures. Raises MediaError for a malformed csi: address."""
    text = text.strip()
    if text == SYNTHETIC:
        return Address(kind="synthetic", target=text, name=SYNTHETIC)
    if text == BROWSER:
        return Address(kind="browser", target=text, name="a browser's camera")
    if re.fullmatch(r"\d{1,3}", text):
        return Address(kind="camera", target=text, name=f"camera {int(text)}")
    if text.startswith("/dev/"):
        return Address(kind="camera", target=text, name=f"camera {text}")
    if text.startswith("csi:"):
        return _csi(text)
    if is_url(text):  # checked before pipelines: a URL containing ' ! ' is a wrong URL and must not become elements
        return Address(kind="url", target=encoded(text), name=without_password(encoded(text)))
    if " ! " in text:
        return Address(kind="pipeline", target=text, name=without_password(text))
    return Address(kind="file", target=text.removeprefix("file://"), name=text.removeprefix("file://"))


def _csi(text: str) -> Address:
    pipeline = csi_pipeline(text)
    if pipeline is None:
        raise MediaError(
            f"{text} is not a CSI camera",
            expected="csi: and the sensor's number, optionally with a mode: csi:0 or csi:0,1920x1080@30",
            fix="--source csi:0",
        )
    return Address(kind="csi", target=pipeline, name=f"CSI camera {text.removeprefix('csi:')}")
