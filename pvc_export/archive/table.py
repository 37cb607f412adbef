"""The table of answers: a file of JSON lines, one per video, which grows by whole lines and survives a kill.

Each line is on disk before the next one is started. A kill can only truncate the last line: the next run removes it and
answers that video again. So each video has one row, however the run ended.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from engines.errors import BackendUnavailable, PVCError
from engines.terminal import finite

Row = dict[str, Any]
"""One video's row: {"video": its path in the folder, ...}, described in job.py."""


class Table:
    """The rows of a file, which is locked for this process until it is closed.

    rows  video -> row, in the file's order
    """

    def __init__(self, path: Path) -> None:
        """Read the existing rows and remove a truncated last line.

        Raises PVCError for a file that is not a table, and BackendUnavailable if another run writes to it, or if it
        cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
            try:
                self.rows = {row["video"]: row for row in self._read()}
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise _not_written(path, error) from error

    def drop(self, is_old: Callable[[Row], bool]) -> int:
        """Remove rows in one atomic step. Returns their number."""
        kept = {video: row for video, row in self.rows.items() if not is_old(row)}
        num_dropped = len(self.rows) - len(kept)
        if num_dropped:
            self._replace(kept.values())
            self.rows = kept
        return num_dropped

    def add(self, row: Row) -> bool:
        """Append a row, and return once it is on disk. Returns False, without writing, if the video has a row.

        Raises BackendUnavailable if the row cannot be written; no part of it is then left in the file.
        """
        if row["video"] in self.rows:
            return False
        line, size = _line(row), self._file.tell()
        try:
            _write(self._file, line)
        except OSError as error:
            self._file.truncate(size)
            raise _not_written(self.path, error) from error
        self.rows[row["video"]] = row
        return True

    def close(self) -> None:
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self) -> list[Row]:
        """Read the rows. Afterwards the file is open at its end."""
        self._file = self.path.open("a+b", buffering=0)
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        whole, size = lines[:-1], 0
        rows: list[Row] = []
        for number, line in enumerate(whole, start=1):
            row = _row_of(line)
            if row is None and number == len(whole):
                break  # a power cut may leave a line's length without its content
            if row is None:
                self._file.close()
                raise PVCError(
                    f"line {number} of {self.path} is not a row of pvc-export batch: {line[:40]!r}",
                    expected="a table that pvc-export batch started, or a file that does not exist yet",
                    cause="it is another program's file, or it was edited",
                    fix="name another file with -o",
                )
            rows.append(row)
            size += len(line) + 1
        self._file.truncate(size)
        self._file.seek(size)
        return rows

    def _replace(self, rows: Iterable[Row]) -> None:
        partial = self.path.with_name(f".{self.path.name}.part")
        try:
            with partial.open("wb", buffering=0) as file:
                _write(file, b"".join(map(_line, rows)))
            os.replace(partial, self.path)
            self._file.close()
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise _not_written(self.path, error) from error


def _row_of(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("video"), str) and "job" in row else None


def _line(row: Row) -> bytes:
    return json.dumps(finite(row), ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape") + b"\n"


def _write(file: IO[bytes], content: bytes) -> None:
    """Write all of `content` and sync it to disk."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def _locked(path: Path) -> IO[bytes]:
    """A file next to the table, locked until it is closed or the process ends, if the system has locks.

    The table itself cannot be locked, since `drop` replaces it.
    """
    file = path.with_name(f".{path.name}.lock").open("wb")
    try:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError as error:
        file.close()
        raise BackendUnavailable(
            f"another run is writing to {path}",
            expected="one run per table: two runs would answer the same videos",
            fix="wait for it to end, or name another file with -o; --workers shares one run's work",
        ) from error
    return file


def _not_written(path: Path, error: OSError) -> BackendUnavailable:
    return BackendUnavailable(
        f"the table {path} cannot be written: {error.strerror}",
        cause="the disk is full, or you may not write to the folder",
        fix=f"ls -ld {shlex.quote(str(path.parent))}; the table keeps its rows, and the same command continues there",
    )
