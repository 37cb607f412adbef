"""A file of JSON lines that keeps only whole lines after a kill, a power cut or a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from engines.errors import BackendUnavailable
from engines.terminal import finite

BLOCK = 4096  # bytes searched at a time for the end of the last whole line


def to_line(data: dict[str, Any]) -> bytes:
    """One line of UTF-8. NaN and infinity, which JSON lacks, become null; half of a surrogate pair is escaped."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


class Lines:
    """A file that grows by whole lines. num_cut: bytes of an incomplete last line that were removed on opening."""

    def __init__(self, path: Path) -> None:
        """Open for appending. Raises BackendUnavailable if the file cannot be written."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise BackendUnavailable(
                f"{path} cannot be written: {error.strerror}",
                expected="a file in a folder that exists",
                fix=f"mkdir -p {path.parent}, and check its owner: ls -ld {path.parent}",
            ) from error
        self.num_cut = self._cut_unfinished()

    def append(self, data: dict[str, Any]) -> None:
        """Add a line in one write, which a kill cannot split. On OSError no part of the line remains."""
        line, size = to_line(data), os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):  # the disk filled up in the middle of the line
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_unfinished(self) -> int:
        """Remove everything after the last whole line. Returns the number of bytes removed."""
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(end - BLOCK, 0)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)
        return size - end
