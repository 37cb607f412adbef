"""The window, with a fake OpenCV: keys, closing, and machines without a display."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from apps.window import MAX_HEIGHT, MAX_WIDTH, Window
from engines.errors import BackendUnavailable


class FakeCv2:
    """cv2's window functions. `key` is what waitKey returns, -1 for none."""

    class error(Exception):  # noqa: N801
        pass

    WINDOW_NORMAL, WINDOW_KEEPRATIO, WINDOW_GUI_NORMAL, WND_PROP_VISIBLE = 0, 1, 16, 4

    def __init__(self, *, has_windows: bool = True) -> None:
        self.has_windows, self.key, self.visible = has_windows, -1, 1.0
        self.shown: list[np.ndarray] = []
        self.sizes: list[tuple[int, int]] = []

    def namedWindow(self, title: str, flags: int) -> None:  # noqa: N802
        if not self.has_windows:
            raise self.error("The function is not implemented")

    def waitKey(self, delay_ms: int) -> int:  # noqa: N802
        return self.key

    def imshow(self, title: str, image: np.ndarray) -> None:
        self.shown.append(image)

    def resizeWindow(self, title: str, width: int, height: int) -> None:  # noqa: N802
        self.sizes.append((width, height))

    def getWindowProperty(self, title: str, prop: int) -> float:  # noqa: N802
        if self.visible < 0:
            raise self.error("NULL window")
        return self.visible

    def destroyAllWindows(self) -> None:  # noqa: N802
        self.visible = 0.0


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(-1, ""), (255, ""), (ord("q"), "quit"), (ord("Q"), "quit"), (27, "quit"), (ord(" "), "ask"), (ord("x"), "")],
)
def test_keys_mean_what_the_help_says(code: int, meaning: str) -> None:
    cv2 = FakeCv2()
    window = Window(cv2)
    cv2.key = code
    assert window.key() == meaning


@pytest.mark.parametrize("visible", [0.0, -1.0], ids=["hidden", "gone"])
def test_closing_the_window_ends_the_session(visible: float) -> None:
    cv2 = FakeCv2()
    window = Window(cv2)
    assert window.key() == ""
    cv2.visible = visible
    assert window.key() == "quit"


@pytest.mark.parametrize("shape", [(48, 64), (1080, 1920), (640, 360), (1, 900)], ids=str)
def test_the_window_opens_at_a_readable_size_once(shape: tuple[int, int]) -> None:
    cv2 = FakeCv2()
    window, frame = Window(cv2), np.zeros((*shape, 3), np.uint8)
    window.show(frame)
    window.show(frame)
    ((width, height),) = cv2.sizes
    assert len(cv2.shown) == 2 and 1 <= width <= MAX_WIDTH and 1 <= height <= MAX_HEIGHT
    assert width == MAX_WIDTH or height == MAX_HEIGHT


def test_an_opencv_without_windows_is_explained() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        Window(FakeCv2(has_windows=False))
    assert "opencv-python-headless" in caught.value.cause and "--headless --record" in caught.value.fix


def test_a_machine_without_a_screen_is_told_so_before_qt_aborts_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("apps.window.import_cv2", lambda: asked.append(1) or FakeCv2())
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(BackendUnavailable, match="neither DISPLAY nor WAYLAND_DISPLAY is set") as caught:
        Window()
    assert "--headless" in caught.value.fix
    monkeypatch.setenv("DISPLAY", ":0")
    Window()
    assert len(asked) == 2
