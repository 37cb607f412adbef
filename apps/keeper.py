"""A live stream on disk, every so often: what a restart goes on with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from engines import Bundle, PVCStream, open_stream
from engines.errors import BackendUnavailable, PVCError


class Keeper:
    """Saves a stream to one file, which is replaced in one step: a kill leaves the last whole one."""

    def __init__(self, path: Path, *, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises BackendUnavailable for a place where no file can be: that is known before the first save."""
        if path.is_dir() or not path.parent.is_dir():
            raise BackendUnavailable(
                f"{path} is a folder" if path.is_dir() else f"{path.parent} is no folder",
                expected="--state with the name of a file, in a folder that exists",
                fix=f"--state {path / 'state.npz'}" if path.is_dir() else f"mkdir -p {path.parent}",
            )
        self.path, self._every_s, self._clock = path, every_s, clock
        self._saved_at = clock()

    def resume(self, bundle: Bundle, say: Callable[[str], None]) -> PVCStream | None:
        """The stream that was saved; None where there is none yet. Raises StreamError for a file that is damaged, or of
        another bundle."""
        if not self.path.exists():
            say(f"{self.path} does not exist yet: a new stream begins.")
            return None
        stream, age_s = open_stream(self.path, bundle), time.time() - self.path.stat().st_mtime
        say(f"resumed {self.path}: {stream.num_frames} frames, saved {age_s:.0f} s ago; what came after that is lost")
        return stream

    def is_due(self) -> bool:
        return self._clock() - self._saved_at >= self._every_s

    def save(self, stream: PVCStream) -> str:
        """Save it, where no question is being answered. Returns what went wrong, or nothing: the stream goes on either
        way, and the file before it stays."""
        self._saved_at = self._clock()
        try:
            stream.save(self.path)
        except PVCError as error:
            return error.what
        return ""
