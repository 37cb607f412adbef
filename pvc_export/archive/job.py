"""The questions about a folder of videos, the search for the videos, and the form of a row.

{"video": "gate/0412.mp4",                   path in the folder
 "bytes": 48211, "modified": "2026-11-30T08:49:12.250000",   UTC; a file of another size or time is another video
 "answers": [{"question", "answer", "margin", "finished"}],  margin as in engines.Answer
 "frames": 16, "seconds": 0.41, "damage": null,              frames shown; missing frames, if any
 "error": null,                              or the error in the form of --json; answers is then empty
 "job": "6f0c..."}                           digest of questions, bundle and options
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from engines.bundle import Runtime
from engines.clock import Clock
from engines.errors import MediaError
from engines.manifest import Manifest

from .table import Row

SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
))  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The questions for every video of a folder, and the options. Can be pickled; `folder` and `bundle` are absolute.

    frames  number of frames sampled evenly in time; 0 takes every frame
    Raises ValueError, naming the command line's options, for invalid questions.
    """

    bundle: Path
    folder: Path
    questions: tuple[str, ...]
    frames: int = 16
    max_new_tokens: int = 32
    clock: Clock | None = None
    runtime: Runtime = "auto"
    trust_engines: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError("there is no question; give --ask")
        if len(set(self.questions)) < len(self.questions):
            raise ValueError("the same question was given twice with --ask")

    def digest(self) -> str:
        """Digest of everything that an answer depends on except the video. Raises BundleError for a folder that is not
        a bundle."""
        manifest = Manifest.load(self.bundle)
        graphs = sorted((name, entry.sha256) for name, entry in manifest.files.items() if name.startswith("graphs/"))
        asked = [graphs, manifest.precision, self.questions, self.frames, self.max_new_tokens, self.clock]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """A file of the folder. name: its path in the folder, with /."""

    name: str
    num_bytes: int
    modified: str

    def is_of(self, row: Row) -> bool:
        """Whether the row belongs to this file in its current state."""
        return (row["video"], row.get("bytes"), row.get("modified")) == (self.name, self.num_bytes, self.modified)

    def row(self, job: str) -> Row:
        """The first fields of the video's row."""
        return {"video": self.name, "bytes": self.num_bytes, "modified": self.modified, "job": job}


def find_videos(folder: Path) -> list[Video]:
    """All files below the folder with a video's suffix, sorted, without hidden files and folders. Raises MediaError if
    there are none."""
    if not folder.is_dir():
        raise MediaError(
            f"{folder} is not a folder",
            expected="a folder of videos",
            fix="name the folder of the videos, or for a single file: pvc-export run",
        )
    videos = sorted(_found(folder), key=lambda video: video.name)
    if not videos:
        raise MediaError(
            f"{folder} contains no videos", expected=f"files that end in one of {', '.join(sorted(SUFFIXES))}",
            cause="the videos are elsewhere, or their names end differently", fix=f"look for them: ls -R {folder}",
        )  # fmt: skip
    return videos


def _found(folder: Path) -> Iterator[Video]:
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(at) / name
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            try:
                facts = path.stat()
            except OSError:  # deleted meanwhile, or a broken link
                yield Video(name=path.relative_to(folder).as_posix(), num_bytes=0, modified="")
                continue
            modified = datetime.fromtimestamp(facts.st_mtime, timezone.utc).replace(tzinfo=None).isoformat()
            yield Video(name=path.relative_to(folder).as_posix(), num_bytes=facts.st_size, modified=modified)
