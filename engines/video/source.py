"""Opens a file or an address with PyAV and finds its video stream; if there is none, the error names what it has.

Note: an attached cover picture does not count, although FFmpeg lists it as video. PyAV is imported in functions.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from engines.errors import BackendUnavailable, MediaError

WHOLE_VIDEO = "a complete video file"
NOT_WHOLE = "it is another kind of file, is damaged, or is truncated"
TIMEOUT_S = 5.0
"""Timeout of a network stream, for opening and for each packet."""
RAW_FORMATS = frozenset(("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "obu", "cavsvideo", "dirac", "vc1"))
"""FFmpeg's names of codecs without a container: no timestamps, and a frame rate only if the codec states one."""
UNSTATED_RATE = Fraction(1000, 7)
"""Passed for raw streams, so that a rate the stream states can be told from FFmpeg's default of 25."""

SECRET = re.compile(
    r"""((?<![a-z])(?:pass(?:word|wd|phrase)?|pwd|user-pw|proxy-pw)=)("[^"]*"|'[^']*'|[^&\s]*)""", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """name: for display and errors, without password. fps: None if a raw stream states none and none was given."""

    name: str
    container: Any
    stream: Any
    fps: float | None
    is_raw: bool


def is_url(source: str | Path) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(source)) is not None and not str(source).startswith("file://")


def without_password(text: str) -> str:
    """An address, or a text containing one, safe to display. Replaces the password before its @ by ***, also in an
    invalid address whose password contains a /, and the values of password=, pwd=, passphrase= and GStreamer's
    user-pw=."""
    if "://" not in text:
        return text
    text = re.sub(r"(://[^/\s:@]*):(?:[^/\s]*|(?!\d+[/?#])\S*)@", r"\1:***@", text)
    return SECRET.sub(r"\1***", text)


def import_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise BackendUnavailable(
            f"the package av, needed for video files, cannot be imported: {error}", fix="pip install -e '.[apps]'"
        ) from error


def open_source(source: str | Path, *, fps: float | None = None) -> Opened:
    """Open a source and choose its video stream; the caller closes the container.

    `fps` is for raw streams, which have no timestamps. Raises MediaError if it is not a video, or if `fps` is given for
    a file with timestamps; BackendUnavailable without PyAV.
    """
    av = import_av()
    source = str(source).removeprefix("file://")
    name = without_password(source)
    if not is_url(source):
        check_is_file(Path(source))
    try:
        container = _open(av, source, {})
        if container.format.name in RAW_FORMATS:
            container.close()
            container = _open(av, source, {"framerate": str(UNSTATED_RATE)})
    except (av.error.FFmpegError, OSError) as error:
        raise _cannot_be_opened(source, name, getattr(error, "strerror", None) or str(error)) from error
    try:
        stream = _video_stream(container, name)
        is_raw = container.format.name in RAW_FORMATS
        if fps is not None and not is_raw:
            raise MediaError(
                f"{name} has timestamps, so {fps:g} frames per second cannot be set",
                expected="--fps only for a raw stream, such as a .h264 file",
                fix="leave --fps out",
            )
        rate = fps or _stated_rate(stream, is_raw=is_raw)
        # Frame threads in addition to slice threads give the same frames, but would delay a live view.
        stream.thread_type = "SLICE" if is_url(source) and not container.duration else "AUTO"
    except BaseException:
        container.close()
        raise
    return Opened(name=name, container=container, stream=stream, fps=rate, is_raw=is_raw)


def check_is_file(path: Path) -> None:
    """Raise MediaError unless this is a non-empty, readable file."""
    if not path.exists():
        what, cause, fix = "does not exist", f"a typing error, or it is not in {Path.cwd()}", f"ls {path.parent}"
    elif not path.is_file():
        what, cause, fix = "is not a file", "it is a folder or a device", f"name one file: ls {path}"
    elif path.stat().st_size == 0:
        what, cause = "is empty (0 bytes)", "a download or recording failed"
        fix = f"fetch it again, and check its size: ls -l {path}"
    elif not os.access(path, os.R_OK):
        what, cause, fix = "cannot be read: permission denied", "it belongs to another user", f"ls -l {path}"
    else:
        return
    raise MediaError(f"{path} {what}", expected="a video file", cause=cause, fix=fix)


def no_frame_rate(name: str) -> MediaError:
    return MediaError(
        f"{name} states no frame rate",
        expected="a video that states its frames per second",
        cause="it is a raw stream without a container",
        fix="give the camera's rate, for example: --fps 25",
    )


def no_video(name: str, what: str, *, cause: str) -> MediaError:
    return MediaError(f"{name} {what}", expected=WHOLE_VIDEO, cause=cause, fix=f"ffprobe {name}, or try another file")


def _open(av: Any, source: str | Path, options: dict[str, str]) -> Any:
    if is_url(source):
        # TCP, since a lost UDP packet damages pictures.
        network = {"rtsp_transport": "tcp"} if str(source).startswith("rtsp") else {}
        return av.open(str(source), metadata_errors="replace", options=network | options, timeout=(TIMEOUT_S,) * 2)
    # "file:" keeps a name such as 10:30.mp4 from being read as a protocol; metadata_errors keeps tags in encodings
    # other than UTF-8 from raising.
    return av.open(f"file:{source}", metadata_errors="replace", options=options)


def _cannot_be_opened(source: str | Path, name: str, why: str) -> MediaError:
    if not is_url(source):
        return no_video(name, f"cannot be read as a video: {why}", cause=NOT_WHOLE)
    return MediaError(
        f"{name} cannot be opened: {why}",
        expected="a video stream that FFmpeg can decode",
        cause="the address, port, user or password is wrong, the camera is off, or the network blocks it",
        fix=f"ffprobe {name}",
    )


def _video_stream(container: Any, name: str) -> Any:
    disposition = importlib.import_module("av.stream").Disposition
    kinds = [stream.type for stream in container.streams]
    videos = [s for s in container.streams.video if not s.disposition & disposition.attached_pic]
    # FFmpeg's "tty" format renders any .txt file as a terminal screen: never what a user means.
    if container.format.name == "tty":
        raise no_video(name, "has no video stream", cause="it contains only text")
    if not videos and "video" in kinds:
        held = "sound and a cover picture" if "audio" in kinds else "a cover picture"
        raise MediaError(
            f"{name} has no video stream: it contains {held}",
            expected="a video",
            cause="it is probably a music file",
            fix=f"try another file, or show the cover: ffmpeg -i {name} cover.png, then run --image cover.png",
        )
    if not videos:
        raise no_video(name, "has no video stream", cause="it contains only sound or text")
    stream = next((s for s in videos if s.disposition & disposition.default), videos[0])
    if stream.codec_context is None:
        raise MediaError(
            f"{name} uses a video codec that this PyAV cannot decode",
            expected="a common codec, such as H.264",
            cause="a camera's proprietary format",
            fix=f"convert it: ffmpeg -i {name} -c:v libx264 converted.mp4",
        )
    return stream


def _stated_rate(stream: Any, *, is_raw: bool) -> float | None:
    rate = stream.codec_context.framerate if is_raw else stream.average_rate or stream.guessed_rate
    return None if not rate or (is_raw and rate == UNSTATED_RATE) else float(rate)
