"""Regular saves of a live stream, so that a restart can resume it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from engines import Bundle, PVCStream, open_stream
from engines.errors import BackendUnavailable, PVCError


class Keeper:
    """Saves a stream to one file, replaced atomically: after a kill, the last complete save remains."""

    def __init__(self, path: Path, *, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises BackendUnavailable if no file can be written there, before the first save is due."""
        if path.is_dir() or not path.parent.is_dir():
            raise BackendUnavailable(
                f"{path} is a folder" if path.is_dir() else f"{path.parent} is not a folder",
                expected="--state with a file name in an existing folder",
                fix=f"--state {path / 'state.npz'}" if path.is_dir() else f"mkdir -p {path.parent}",
            )
        self.path, self._every_s, self._clock = path, every_s, clock
        self._saved_at = clock()

    def resume(self, bundle: Bundle, say: Callable[[str], None]) -> PVCStream | None:
        """The saved stream; None if there is none yet. Raises StreamError for a file that is damaged or belongs to
        another bundle."""
        if not self.path.exists():
            say(f"{self.path} does not exist yet: starting a new stream.")
            return None
        stream, age_s = open_stream(self.path, bundle), time.time() - self.path.stat().st_mtime
        say(f"resumed {self.path}: {stream.num_frames} frames, saved {age_s:.0f} s ago; anything later is lost")
        return stream

    def is_due(self) -> bool:
        return self._clock() - self._saved_at >= self._every_s

    def save(self, stream: PVCStream) -> str:
        """Save the stream; not while a question is being answered. Returns the error's text, or ''. On failure the
        stream continues and the previous file stays."""
        self._saved_at = self._clock()
        try:
            stream.save(self.path)
        except PVCError as error:
            return error.what
        return ""
