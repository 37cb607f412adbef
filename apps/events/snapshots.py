"""Snapshots: JPEGs in a folder with a limit; the oldest are removed.

The name is known immediately, on the session's thread; another thread compresses and writes the picture.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from queue import Full, Queue
from threading import Thread

from PIL import Image

from apps.capture import Captured
from engines.errors import BackendUnavailable
from engines.synthetic import Frame

MAX_FILES, MAX_BYTES = 1000, 2 * 2**30
MAX_WAITING = 8  # pictures in memory that are not written yet
QUALITY = 90
NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-frame\d+\.jpg(\.part)?")  # no other file in the folder is ever removed


class Snapshots:
    """Keeps the newest pictures. File names are UTC times and sort by time: 20260102T030405.678Z-frame90.jpg."""

    def __init__(
        self,
        folder: Path,
        *,
        trouble: Callable[[str], None],
        max_files: int = MAX_FILES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Create the folder. trouble: receives one line for the user, on any thread. Raises BackendUnavailable if the
        folder cannot be written."""
        self.num_lost = 0
        self._folder, self._trouble, self._max_files, self._max_bytes = folder, trouble, max_files, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._kept = self._found()
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise BackendUnavailable(
                f"snapshots cannot be written to {folder}: {error.strerror}",
                expected="a writable folder",
                fix=f"ls -ld {folder} {folder.parent}",
            ) from error
        self._newest: tuple[Captured, str] | None = None
        self._is_failing = False
        self._queue: Queue[tuple[Path, Frame] | None] = Queue(MAX_WAITING)
        self._thread = Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def take(self, captured: Captured, at: datetime) -> str | None:
        """Queue a picture of this frame and return its future path; None if too many wait. `at` is wall time.

        Called again for the same frame, it returns the same path.
        """
        if self._newest is not None and self._newest[0] is captured:
            return self._newest[1]
        moment = at.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")[:-3]
        path = self._folder / f"{moment}Z-frame{captured.index}.jpg"
        try:
            self._queue.put_nowait((path, captured.bgr))
        except Full:
            self._fail(f"{MAX_WAITING} pictures are waiting to be written to {self._folder}; the newest one is lost")
            return None
        self._newest = captured, str(path)
        return str(path)

    def close(self, within_s: float = 5.0) -> None:
        """Write the waiting pictures; what is not written in time is abandoned and reported."""
        try:
            self._queue.put(None, timeout=within_s)
        except Full:
            pass
        else:
            self._thread.join(within_s)
        if self._thread.is_alive():
            self._trouble(f"{self._folder}: the last pictures were not written before the end")

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None:
            try:
                self._write(*waiting)
                self._remove_oldest()
            except OSError as error:
                self._fail(f"{waiting[0]} cannot be written: {error.strerror or error}")
            else:
                self._is_failing = False

    def _write(self, path: Path, bgr: Frame) -> None:
        partial = path.with_name(path.name + ".part")
        try:
            Image.fromarray(bgr[..., ::-1].copy()).save(partial, "JPEG", quality=QUALITY)
            size = partial.stat().st_size
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        self._kept.append((path, size))

    def _remove_oldest(self) -> None:
        num_bytes = sum(size for _, size in self._kept)
        while len(self._kept) > 1 and (len(self._kept) > self._max_files or num_bytes > self._max_bytes):
            path, size = self._kept.popleft()
            path.unlink(missing_ok=True)
            num_bytes -= size

    def _found(self) -> deque[tuple[Path, int]]:
        """Pictures from earlier sessions, oldest first. Removes files a kill left half written."""
        found = []
        for path in sorted(path for path in self._folder.iterdir() if NAME.fullmatch(path.name)):
            if path.suffix == ".part":
                path.unlink()
            else:
                found.append((path, path.stat().st_size))
        return deque(found)

    def _fail(self, text: str) -> None:
        self.num_lost += 1
        if not self._is_failing:
            self._is_failing = True
            self._trouble(text)
