"""What is asked about a folder of videos, which videos that are, and what a row says.

{"video": "gate/0412.mp4",                   path in the folder
 "bytes": 48211, "modified": "2026-11-30T08:49:12.250000",   UTC: a file of another size or time is another video
 "answers": [{"question", "answer", "margin", "finished"}],  margin as engines.Answer has it
 "frames": 16, "seconds": 0.41, "damage": null,              frames that were shown; what was missing, if anything
 "error": null,                              or what went wrong, as --json says it: then answers is empty
 "job": "6f0c..."}                           of questions, bundle and options
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
    """What every video of a folder is asked, and how. It can be pickled, and `folder` and `bundle` are absolute.

    frames  sampled evenly in time; 0 takes every frame
    Raises ValueError, in the words of the command line, for what cannot be.
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
            raise ValueError("there is nothing to answer; give --ask")
        if len(set(self.questions)) < len(self.questions):
            raise ValueError("the same question was given twice with --ask")

    def digest(self) -> str:
        """Of all that an answer depends on but the video. Raises BundleError for a folder that is no bundle."""
        manifest = Manifest.load(self.bundle)
        graphs = sorted((name, entry.sha256) for name, entry in manifest.files.items() if name.startswith("graphs/"))
        asked = [graphs, manifest.precision, self.questions, self.frames, self.max_new_tokens, self.clock]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """A file of the folder. name: its path in it, with /."""

    name: str
    num_bytes: int
    modified: str

    def is_of(self, row: Row) -> bool:
        """Whether the row is about this file as it is now."""
        return (row["video"], row.get("bytes"), row.get("modified")) == (self.name, self.num_bytes, self.modified)

    def row(self, job: str) -> Row:
        """The beginning of its row."""
        return {"video": self.name, "bytes": self.num_bytes, "modified": self.modified, "job": job}


def find_videos(folder: Path) -> list[Video]:
    """All files below it whose suffix is a video's, in order; not those whose name, or whose folder's, begins with a
    dot. Raises MediaError where there is none."""
    if not folder.is_dir():
        raise MediaError(
            f"{folder} is no folder",
            expected="a folder of videos",
            fix="name its folder, or for one file: pvc-export run",
        )
    videos = sorted(_found(folder), key=lambda video: video.name)
    if not videos:
        raise MediaError(
            f"{folder} holds no video", expected=f"files that end in one of {', '.join(sorted(SUFFIXES))}",
            cause="they are elsewhere, or have other names", fix=f"ls -R {folder}",
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
            except OSError:  # gone since, or a link that leads nowhere
                yield Video(name=path.relative_to(folder).as_posix(), num_bytes=0, modified="")
                continue
            modified = datetime.fromtimestamp(facts.st_mtime, timezone.utc).replace(tzinfo=None).isoformat()
            yield Video(name=path.relative_to(folder).as_posix(), num_bytes=facts.st_size, modified=modified)
