"""The window of a live view.

Note: open it before PyAV is imported, which a recording does. PyAV contains a copy of libxcb; if that is loaded first,
OpenCV's Qt window hangs forever: opencv/opencv#21952, seen here with opencv-python 5.0 and av 18.1.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from engines.errors import BackendUnavailable
from engines.synthetic import Frame

from .opencv import import_cv2

TITLE = "pvc-live"
ESCAPE = 27
MAX_WIDTH, MAX_HEIGHT = 1280, 720  # of the window at first; the user may resize it
WITHOUT = "run without a window: pvc-live ... --headless --record OUT.mp4"


class Window:
    """Shows frames and reads keys."""

    _is_sized = False

    def __init__(self, cv2: Any = None) -> None:
        """Raises BackendUnavailable without a screen, or with an OpenCV without windows."""
        self._cv2 = cv2 or import_cv2()
        if (
            cv2 is None
            and sys.platform == "linux"
            and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        ):
            # Check first: without a screen, Qt would abort the process.
            raise BackendUnavailable(
                "a window needs a screen, but neither DISPLAY nor WAYLAND_DISPLAY is set",
                cause="this is a remote shell, a container or a service",
                fix=WITHOUT,
            )
        try:
            flags = self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO | self._cv2.WINDOW_GUI_NORMAL
            self._cv2.namedWindow(TITLE, flags)
            self._cv2.waitKey(1)
        except self._cv2.error as error:
            raise BackendUnavailable(
                "this OpenCV cannot open windows",
                expected="the package opencv-python",
                cause="opencv-python-headless is installed",
                fix=f"{WITHOUT}; or pip uninstall opencv-python-headless, then pip install opencv-python",
            ) from error

    def show(self, frame_bgr: Frame) -> None:
        if not self._is_sized:
            height, width, _ = frame_bgr.shape
            scale = min(MAX_WIDTH / width, MAX_HEIGHT / height)
            self._cv2.resizeWindow(TITLE, max(1, round(width * scale)), max(1, round(height * scale)))
            self._is_sized = True
        self._cv2.imshow(TITLE, frame_bgr)

    def key(self) -> str:
        """The key since the last call: 'quit' for q, Esc or closing the window, 'ask' for space, otherwise ''."""
        code = self._cv2.waitKey(1) & 0xFF
        if code in (ord("q"), ord("Q"), ESCAPE) or self._is_closed():
            return "quit"
        return "ask" if code == ord(" ") else ""

    def close(self) -> None:
        self._cv2.destroyAllWindows()

    def _is_closed(self) -> bool:
        try:
            return bool(self._cv2.getWindowProperty(TITLE, self._cv2.WND_PROP_VISIBLE) < 1)
        except self._cv2.error:
            return True
