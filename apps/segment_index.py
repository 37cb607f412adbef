"""The folder of a recording in segments: which files there are, how large, what is in them, and what a kill left.

    20260102T030405.678Z.mp4             a finished segment, named by the wall time of its first frame, in UTC
    index.jsonl                          a line for each of them; one whose file is gone was removed for room
    .20260102T030905.678Z.1f2e3d4c.mp4   the open segment
    .open.json                           what is known of it
    .lock                                held by the session that records

The order of a segment's end: its file takes its name, its line is added, `.open.json` is removed. So whatever a kill
leaves can be told and completed at the next start.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from engines.errors import BackendUnavailable, MediaError
from engines.video import probe_video

from .lines import Lines, to_line

NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z\.mp4")
PARTIAL = re.compile(r"\.(\d{8}T\d{6}\.\d{3}Z)\.[0-9a-f]{8}\.mp4")
INDEX, OPEN, LOCK = "index.jsonl", ".open.json", ".lock"
MIN_GONE = 100
"""Lines of removed segments that the index may hold, or as many as there are others."""


def read_index(folder: Path) -> Iterator[dict[str, Any]]:
    """What the index says of each segment that is still there, oldest first."""
    with (folder / INDEX).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n") and (folder / (entry := json.loads(line))["file"]).exists():
                yield entry


class SegmentFolder:
    """A folder that one session records to. `completed`: what an earlier one left open, as lines for a person."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, and completes what a kill left. Raises BackendUnavailable where that cannot be, or where
        another session records to it."""
        self.path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendUnavailable(
                f"{folder} cannot be made: {error.strerror}",
                expected="a folder that may be written to",
                fix=f"ls -ld {folder.parent}",
            ) from error
        self._lock = _locked(folder)
        self.completed: list[str] = []
        self._index = self._complete()
        self._sizes = deque((path, path.stat().st_size) for path in self._finished())
        self.num_bytes = sum(size for _, size in self._sizes)  # of all finished segments
        self._num_gone = 0  # lines whose files were removed

    def keep_open(self, facts: dict[str, Any]) -> None:
        """What is known of the open segment by now. Raises OSError."""
        self._replace(OPEN, to_line(facts))

    def add(self, facts: dict[str, Any]) -> None:
        """The open segment is finished, and has its name. Raises OSError; the next start completes the index then."""
        path = self.path / facts["file"]
        size = path.stat().st_size
        self._sizes.append((path, size))
        self.num_bytes += size
        self._index.append(facts | {"bytes": size})
        self.forget_open()

    def forget_open(self) -> None:
        """There is no open segment any more."""
        (self.path / OPEN).unlink(missing_ok=True)

    def remove_oldest(self) -> bool:
        """Remove the oldest segment; False if there is none."""
        if not self._sizes:
            return False
        path, size = self._sizes.popleft()
        path.unlink(missing_ok=True)
        self.num_bytes -= size
        self._num_gone += 1
        if self._num_gone > max(len(self._sizes), MIN_GONE):
            self._index.close()
            self._index, self._num_gone = self._rewritten(read_index(self.path)), 0
        return True

    def close(self) -> None:
        self._index.close()
        self._lock.close()

    def _complete(self) -> Lines:
        """Name what was left open, add lines that are missing, and drop those whose files are gone."""
        facts = self._facts_left_open()
        for path in sorted(self.path.iterdir()):
            if match := PARTIAL.fullmatch(path.name):
                self._name(path, self.path / f"{match[1]}.mp4")
        (self.path / INDEX).touch()
        present = list(read_index(self.path))
        known = {entry["file"] for entry in present}
        for path in self._finished():
            if path.name not in known:
                present.append(self._facts_of(path) | (facts if facts.get("file") == path.name else {}))
                self.completed.append(f"{path} was left open by an earlier session, and is completed")
        index = self._rewritten(sorted(present, key=lambda entry: str(entry["file"])))
        self.forget_open()
        return index

    def _rewritten(self, entries: Iterable[dict[str, Any]]) -> Lines:
        """The index, with these lines only."""
        self._replace(INDEX, b"".join(map(to_line, entries)))
        return Lines(self.path / INDEX)

    def _name(self, partial: Path, path: Path) -> None:
        try:
            probe_video(partial)
        except MediaError:  # it was killed before the first second was written
            partial.unlink()
            self.completed.append(f"{path} was left open by an earlier session without a picture, and is removed")
        else:
            os.replace(partial, path)

    def _facts_of(self, path: Path) -> dict[str, Any]:
        info = probe_video(path)
        size = path.stat().st_size
        return {"file": path.name, "num_frames": info.num_frames, "fps": info.fps, "bytes": size, "cut_short": True}

    def _facts_left_open(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.path / OPEN).read_bytes())
        except (OSError, ValueError):
            return {}
        return facts

    def _finished(self) -> list[Path]:
        return sorted(path for path in self.path.iterdir() if NAME.fullmatch(path.name))

    def _replace(self, name: str, content: bytes) -> None:
        partial = self.path / f"{name}.part"
        partial.write_bytes(content)
        os.replace(partial, self.path / name)


def _locked(folder: Path) -> IO[bytes]:
    """A file whose lock is held until it is closed, where the system has locks. Raises BackendUnavailable where another
    session holds it: each would take the other's open segment for one that a kill left."""
    try:
        file = (folder / LOCK).open("wb")
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return file
    except BlockingIOError as error:
        file.close()
        raise BackendUnavailable(
            f"another session records to {folder} now", expected="a folder for each session", fix="name another folder"
        ) from error
    except OSError as error:
        raise BackendUnavailable(
            f"{folder} cannot be recorded to: {error.strerror}",
            expected="a folder that may be written to",
            fix=f"ls -ld {folder}",
        ) from error
    return file
