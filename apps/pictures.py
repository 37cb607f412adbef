"""Pictures as a device: a folder, numbered files or an animated picture, read one by one on request."""

from __future__ import annotations

from engines.picture_sequences import open_picture_sequence

from .addresses import Address
from .synthetic import Shown


class PictureDevice:
    """Frames of engines.picture_sequences; it waits for the reader."""

    waits, num_reconnects, damage = True, 0, None

    def __init__(self, address: Address, *, fps: float | None) -> None:
        """`fps` is the rate of a folder or a pattern. Raises what open_picture_sequence raises."""
        self._sequence = open_picture_sequence(address.target, fps=fps)
        self._frames = self._sequence.frames()
        self.name, self.notice = address.name, ""
        self.fps: float | None = self._sequence.info.fps
        self._note()

    def read(self) -> Shown | None:
        frame = next(self._frames, None)
        if frame is None or not self.notice:  # the number of skipped pictures is known, and reported, at the end
            self._note()
        return None if frame is None else Shown(frame.bgr, time_s=frame.time_s)

    def close(self) -> None:
        self._frames = iter(())

    def _note(self) -> None:
        if notices := self._sequence.notices:
            self.notice = f"{self.name}: {'; '.join(notices)}"
