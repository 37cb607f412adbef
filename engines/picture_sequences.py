"""Videos made of pictures: a folder, numbered files (frames/%03d.png), or one animated GIF, PNG, WebP or AVIF.

Note: they offer the same facts, frames and names as engines/video does for a video file. Pictures of a folder need a
frame rate from the caller; an animated picture states how long each of its frames is shown.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import MediaError
from .pictures import ANIMATED_FORMATS, ON_WHITE, explained, opened, read_picture, to_bgr, upright_size
from .video import VideoFrame, VideoInfo

DEFAULT_FPS = 25.0
"""For pictures without a rate: FFmpeg's default for them."""
MIN_FRAME_S, SHORT_FRAME_S = 0.01, 0.1
"""A frame of an animation with MIN_FRAME_S or less is shown for SHORT_FRAME_S, as in web browsers."""
PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".ppm", ".pgm")
)
ANIMATED_SUFFIXES = frozenset((".gif", ".png", ".apng", ".webp", ".avif"))
NUMBER = re.compile(r"%0?\d*d")

Load = Callable[[int], tuple[NDArray[np.uint8], bool]]
"""The frame (H, W, 3) uint8 BGR at an index, and whether any part of it was transparent."""


def is_picture_sequence(address: str | Path) -> bool:
    """Whether an address is read here: a folder, a pattern with %d that is not a file's name, or a file in one of the
    four formats that can be animated. URLs and everything else are not. Opens a file with such a suffix."""
    path = Path(address)
    if "://" in str(address):
        return False
    if path.is_dir():
        return True
    if not path.exists():
        return NUMBER.search(path.name) is not None
    if path.suffix.lower() not in ANIMATED_SUFFIXES or not path.stat().st_size:
        return False
    try:
        with explained(path, []), Image.open(path) as image:
            return image.format in ANIMATED_FORMATS
    except MediaError:  # a video with a wrong suffix, or damage that the video reader reports
        return False


def open_picture_sequence(path: str | Path, *, fps: float | None = None) -> PictureSequence:
    """Open an address for which is_picture_sequence is true. `fps` is for a folder or a pattern; None is DEFAULT_FPS.

    Raises MediaError if there is no picture, if one differs in size from the first, for an invalid fps, or for any fps
    with an animated picture; BackendUnavailable for HEIC without pillow-heif.
    """
    path = Path(path)
    if fps is not None and not (math.isfinite(fps) and 0.01 <= fps <= 1000):
        raise MediaError(
            f"{path} cannot be shown at {fps} pictures per second", expected="0.01 to 1000", fix="--fps 25"
        )
    if path.is_file():
        if fps is not None:
            raise MediaError(
                f"{path} states how long its frames are shown, so no rate can be set",
                expected="--fps with pictures that state no rate: a folder, or a pattern such as frames/%03d.png",
                fix="leave out --fps",
            )
        return AnimatedPicture(path)
    files, notices = (_in_folder(path), []) if path.is_dir() else _numbered(path)
    return PictureFiles(path, files, fps=DEFAULT_FPS if fps is None else fps, notices=notices)


class PictureSequence(ABC):
    """Pictures as a video. `info` is as probe_video returns for a file, `times_s` are the frames' start times."""

    info: VideoInfo
    times_s: tuple[float, ...]
    damage = None
    """For video files only. Problems with pictures are in `notices`."""

    def __init__(self, notices: Iterable[str]) -> None:
        self._notices = list(notices)
        self._is_transparent = False
        self._lost: dict[str, MediaError] = {}

    @property
    def notices(self) -> tuple[str, ...]:
        """Messages for the user about the files and the frames read so far."""
        notices = list(dict.fromkeys(self._notices))
        if self._is_transparent:
            notices.append(ON_WHITE)
        if self._lost:
            first = next(iter(self._lost.values()))
            notices.append(f"unreadable pictures left out: {len(self._lost)}; the first: {first.what}")
        return tuple(notices)

    def frames(self) -> Iterator[VideoFrame]:
        """All frames, like VideoReader.frames. Raises what `at` raises."""
        return self.at(range(self.info.num_frames))

    def shown_at(self, times_s: Sequence[float]) -> Iterator[VideoFrame]:
        """The frames displayed at non-decreasing times, like VideoReader.shown_at."""
        return self.at([max(bisect_right(self.times_s, time_s) - 1, 0) for time_s in times_s])

    def at(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames at non-decreasing indices, repeating a frame for a repeated index, like VideoReader.at.

        An unreadable picture is left out and becomes a notice. Raises MediaError for an index out of range, and if no
        picture could be read.
        """
        wanted = Counter(indices)
        if wanted and not 0 <= min(wanted) <= max(wanted) < self.info.num_frames:
            raise MediaError(
                f"frames {min(wanted)} to {max(wanted)} of {self.info.path} were requested",
                expected=f"0 to {self.info.num_frames - 1}",
                cause="the indices belong to another video",
            )
        return self._read(wanted)

    def _read(self, wanted: Counter[int]) -> Iterator[VideoFrame]:
        num_read = 0
        with self._loading() as load:
            for index in sorted(wanted):
                try:
                    bgr, is_transparent = load(index)
                except MediaError as error:
                    self._lost[f"frame {index}"] = error
                    continue
                num_read += 1
                self._is_transparent |= is_transparent
                for _ in range(wanted[index]):  # a new array per repeat, so that no two frames share memory
                    yield VideoFrame(frame_index=index, time_s=self.times_s[index], bgr=bgr.copy())
        if wanted and not num_read:
            raise next(iter(self._lost.values()))

    @abstractmethod
    def _loading(self) -> AbstractContextManager[Load]: ...


class PictureFiles(PictureSequence):
    """Files of one size, each shown for 1 / fps seconds."""

    def __init__(self, path: Path, files: Sequence[Path], *, fps: float, notices: Iterable[str] = ()) -> None:
        """Opens every file without decoding it. Raises what open_picture_sequence raises."""
        super().__init__(notices)
        self._files: list[Path] = []
        self._size = (0, 0)
        for file in files:
            try:
                with opened(file, self._notices) as image:
                    size = upright_size(image)
            except MediaError as error:
                self._lost[str(file)] = error
                continue
            self._size = self._size if self._files else size
            self._files.append(file)
            self._require_size(file, size)
        if not self._files:
            raise next(iter(self._lost.values()))
        count = len(self._files)
        self.times_s = tuple(index / fps for index in range(count))
        width, height = self._size
        self.info = VideoInfo(
            path=path, width=width, height=height, num_frames=count, fps=fps, duration_s=count / fps, span_s=count / fps
        )

    def _loading(self) -> AbstractContextManager[Load]:
        return nullcontext(self._load)

    def _load(self, index: int) -> tuple[NDArray[np.uint8], bool]:
        file = self._files[index]
        picture = read_picture(file)
        self._require_size(file, (picture.bgr.shape[1], picture.bgr.shape[0]))
        self._notices += [text for text in picture.notices if text != ON_WHITE]
        return picture.bgr, ON_WHITE in picture.notices

    def _require_size(self, file: Path, size: tuple[int, int]) -> None:
        if size != self._size:
            first = self._files[0]
            raise MediaError(
                f"{file} is {size[0]}x{size[1]}, but {first}, the first picture, is {self._size[0]}x{self._size[1]}",
                expected="pictures of one size, like the frames of a video",
                cause="the pictures are from two cameras, or are separate photographs",
                fix=f"give single pictures with --image, or scale them to one size: "
                f"ffmpeg -i {file} -vf scale={self._size[0]}:{self._size[1]} resized{file.suffix}",
            )


class AnimatedPicture(PictureSequence):
    """An animated GIF, PNG, WebP or AVIF; a still one is a video of one frame."""

    def __init__(self, path: Path) -> None:
        """Decodes every frame once: only that shows how long it is displayed and where a damaged file ends."""
        super().__init__(())
        durations_s: list[float] = []
        with opened(path, self._notices) as image:
            # A PNG's default image, for programs that do not animate, may not be part of the animation.
            self._skipped = int(getattr(image, "default_image", False))
            num_frames = getattr(image, "n_frames", 1) - self._skipped
            for index in range(num_frames):
                try:
                    with explained(path, self._notices):
                        durations_s.append(self._duration_s(image, index))
                except MediaError as error:
                    if not durations_s:
                        raise
                    self._notices.append(f"only {index} of its {num_frames} frames can be read: {error.what}")
                    break
            width, height = upright_size(image)
            if image.format == "GIF" and not _ends(path):  # Pillow treats the end of the file as the end of the GIF
                self._notices.append("it has no end marker and is probably truncated")
        count, duration_s = len(durations_s), sum(durations_s)
        self.times_s = tuple(accumulate(durations_s[:-1], initial=0.0))
        self.info = VideoInfo(
            path=path,
            width=width,
            height=height,
            num_frames=count,
            fps=count / duration_s,
            duration_s=duration_s,
            span_s=duration_s,
        )

    def _duration_s(self, image: Image.Image, index: int) -> float:
        image.seek(index + self._skipped)
        image.load()
        stated_s = float(image.info.get("duration") or 0) / 1000
        return SHORT_FRAME_S if stated_s <= MIN_FRAME_S else stated_s

    @contextmanager
    def _loading(self) -> Iterator[Load]:
        path = Path(self.info.path)
        with path.open("rb") as file, Image.open(file) as image:

            def load(index: int) -> tuple[NDArray[np.uint8], bool]:
                with explained(path, self._notices):
                    image.seek(index + self._skipped)
                    return to_bgr(image, path)

            yield load


def _ends(gif: Path) -> bool:
    """Whether a GIF has its last byte, a semicolon; some programs add zeros after it."""
    return gif.read_bytes().rstrip(b"\0").endswith(b";")


def _in_folder(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name with numbers by value; hidden files are skipped."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."]
    files = sorted(filter(Path.is_file, paths), key=natural_key)
    if not files:
        raise MediaError(
            f"{folder} contains no pictures",
            expected=f"files that end in {', '.join(sorted(PICTURE_SUFFIXES))}, or a video file",
            cause="it is a folder of videos, or the pictures are in a subfolder",
            fix=f"name one file: ls {folder}",
        )
    return files


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts frame2 before frame10, ignoring case."""
    parts = re.split(r"(\d+)", path.stem.casefold())
    return [int(part) if part.isdecimal() else part for part in parts], path.name


def _numbered(pattern: Path) -> tuple[list[Path], list[str]]:
    """The files matching a pattern such as frames/%03d.png, by number, and the numbers missing in between."""
    if len(NUMBER.findall(pattern.name)) != 1:
        raise MediaError(
            f"{pattern} has several numbers", expected="one, such as frames/%03d.png", fix=f"ls {pattern.parent}"
        )
    before, spec, after = re.split(f"({NUMBER.pattern})", pattern.name)
    shape = re.compile(f"{re.escape(before)}( *[0-9]+){re.escape(after)}")
    found: dict[int, Path] = {}
    for path in pattern.parent.iterdir() if pattern.parent.is_dir() else ():
        match = shape.fullmatch(path.name)
        if match and spec % int(match[1]) == match[1]:
            found[int(match[1])] = path
    if not found:
        raise MediaError(
            f"no file matches {pattern}",
            expected=f"files such as {pattern.parent / (before + spec % 1 + after)}",
            cause="the numbers have another width: %d takes any, %03d takes three digits with leading zeros",
            fix=f"ls {pattern.parent}",
        )
    numbers = sorted(found)
    return [found[number] for number in numbers], _gap_notices(numbers)


def _gap_notices(numbers: Sequence[int]) -> list[str]:
    num_missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    if not num_missing:
        return []
    first = next(number + 1 for number, after in zip(numbers, numbers[1:], strict=False) if after != number + 1)
    return [f"{num_missing} of the numbers {numbers[0]} to {numbers[-1]} are missing, the first missing one is {first}"]
