"""The folder of a recording in segments: its files, their sizes, their index, and recovery after a kill.

    20260102T030405.678Z.mp4             a finished segment, named by the wall time of its first frame, in UTC
    index.jsonl                          one line per segment; if its file is gone, it was removed to free space
    .20260102T030905.678Z.1f2e3d4c.mp4   the open segment
    .open.json                           the index data of the open segment so far
    .lock                                locked by the recording session

A segment ends in this order: its file gets its final name, its line is added, `.open.json` is removed. So the next
start can recognise and complete whatever a kill left.
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
"""Lines of removed segments allowed in the index before it is rewritten; more if there are more segments than this."""


def read_index(folder: Path) -> Iterator[dict[str, Any]]:
    """The index entries of all segments that still exist, oldest first."""
    with (folder / INDEX).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n") and (folder / (entry := json.loads(line))["file"]).exists():
                yield entry


class SegmentFolder:
    """A folder that one session records to. `completed`: lines about segments an earlier session left open."""

    def __init__(self, folder: Path) -> None:
        """Create the folder and complete what a kill left. Raises BackendUnavailable if that fails or another session
        records to it."""
        self.path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendUnavailable(
                f"{folder} cannot be created: {error.strerror}",
                expected="a writable folder",
                fix=f"ls -ld {folder.parent}",
            ) from error
        self._lock = _locked(folder)
        self.completed: list[str] = []
        self._index = self._complete()
        self._sizes = deque((path, path.stat().st_size) for path in self._finished())
        self.num_bytes = sum(size for _, size in self._sizes)  # of all finished segments
        self._num_gone = 0  # lines whose files were removed

    def keep_open(self, facts: dict[str, Any]) -> None:
        """Store the open segment's data so far. Raises OSError."""
        self._replace(OPEN, to_line(facts))

    def add(self, facts: dict[str, Any]) -> None:
        """Add the finished, renamed segment to the index. Raises OSError; then the next start completes the index."""
        path = self.path / facts["file"]
        size = path.stat().st_size
        self._sizes.append((path, size))
        self.num_bytes += size
        self._index.append(facts | {"bytes": size})
        self.forget_open()

    def forget_open(self) -> None:
        """Remove the open segment's data."""
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
        """Rename segments left open, add missing lines, and drop lines whose files are gone."""
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
                self.completed.append(f"{path} was left open by an earlier session and was completed")
        index = self._rewritten(sorted(present, key=lambda entry: str(entry["file"])))
        self.forget_open()
        return index

    def _rewritten(self, entries: Iterable[dict[str, Any]]) -> Lines:
        """Replace the index by one with only these lines."""
        self._replace(INDEX, b"".join(map(to_line, entries)))
        return Lines(self.path / INDEX)

    def _name(self, partial: Path, path: Path) -> None:
        try:
            probe_video(partial)
        except MediaError:  # the session was killed before the first second was written
            partial.unlink()
            self.completed.append(f"{path} was left open by an earlier session without any frame and was removed")
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
    """Open and lock the lock file until it is closed, if the system has file locks. Raises BackendUnavailable if
    another session holds the lock: each would mistake the other's open segment for one left by a kill."""
    try:
        file = (folder / LOCK).open("wb")
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return file
    except BlockingIOError as error:
        file.close()
        raise BackendUnavailable(
            f"another session is recording to {folder}",
            expected="one folder per session",
            fix="give another folder: --record-folder FOLDER",
        ) from error
    except OSError as error:
        raise BackendUnavailable(
            f"{folder} cannot be recorded to: {error.strerror}",
            expected="a writable folder",
            fix=f"ls -ld {folder}",
        ) from error
    return file
