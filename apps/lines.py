"""A file of JSON lines that a kill, a power cut or a full disk leaves with whole lines only."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from engines.errors import BackendUnavailable
from engines.terminal import finite

BLOCK = 4096  # bytes that are looked through at once for the end of the last whole line


def to_line(data: dict[str, Any]) -> bytes:
    """One line of UTF-8. NaN and infinity, which JSON lacks, become null; half of a surrogate pair is escaped."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


class Lines:
    """A file that grows by whole lines. num_cut: bytes of a line that was cut short before, which were removed."""

    def __init__(self, path: Path) -> None:
        """Appends to what is there. Raises BackendUnavailable where the file cannot be written."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise BackendUnavailable(
                f"{path} cannot be written: {error.strerror}",
                expected="a file in a folder that exists",
                fix=f"mkdir -p {path.parent}, and look at its owner: ls -ld {path.parent}",
            ) from error
        self.num_cut = self._cut_unfinished()

    def append(self, data: dict[str, Any]) -> None:
        """Add a line: in one write, which a kill does not halve. Raises OSError, and nothing of the line is left."""
        line, size = to_line(data), os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):  # the disk had room for a part of it
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """No line can be added any more. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_unfinished(self) -> int:
        """Remove what follows the last whole line. Returns how many bytes that was."""
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
