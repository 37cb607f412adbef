"""Passes a session's events to all viewers without slowing the session.

Note: the session's thread only puts texts into the viewers' queues. A separate thread compresses pictures.
"""

from __future__ import annotations

import json
from threading import Lock
from typing import Any

from engines.terminal import finite

from ..browser import BrowserCamera
from ..capture import Captured
from ..figures import Figures
from ..listeners import Commands, Event
from ..overlay import Status
from .metrics import Metrics
from .options import WebOptions
from .pictures import Pictures
from .state import State
from .viewer import Viewer


class Hub:
    """A Listener. `counted` is also called once per frame, on the session's thread."""

    def __init__(
        self,
        commands: Commands,
        *,
        options: WebOptions | None = None,
        camera: BrowserCamera | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.options = options or WebOptions()
        self.commands, self.camera, self.metrics = commands, camera or BrowserCamera(), metrics
        self.camera.changed = self._tell_camera
        self._lock = Lock()
        self._state = State()
        self._viewers: dict[int, Viewer] = {}
        self._num_joined = 0
        options = self.options
        self._pictures = Pictures(
            self._show, lambda: bool(self._viewers),
            fps=options.picture_fps, width=options.picture_width, quality=options.quality,
        )  # fmt: skip

    # -- the session's side

    def saw(self, captured: Captured, status: Status) -> None:
        self._pictures.offer(captured.bgr)
        with self._lock:
            changed = self._state.see(status)
        self._tell("status", changed, newest_of="status")

    def said(self, question: str, text: str) -> None:
        with self._lock:
            answer = self._state.say(question, text)
        self._tell("answer", answer, newest_of="answer")

    def happened(self, event: Event, captured: Captured) -> None:
        if self.metrics is not None:
            self.metrics.happened(event)
        with self._lock:
            told = self._state.happen(event)
        self._tell("event", told)

    def counted(self, figures: Figures) -> None:
        if self.metrics is not None:
            self.metrics.counted(figures)
        with self._lock:
            status, second = self._state.count(figures)
        self._tell("status", status, newest_of="status")
        self._tell("second", second)

    def close(self) -> None:
        """Send the viewers their waiting messages and disconnect them."""
        with self._lock:
            self._state.ended = True
            viewers = list(self._viewers.values())
        for viewer in viewers:
            viewer.close()
        self._pictures.close()

    # -- the viewers' side

    @property
    def num_viewers(self) -> int:
        return len(self._viewers)

    @property
    def num_waiting(self) -> int:
        """Number of waiting messages and pictures, of all viewers together."""
        return sum(viewer.num_waiting for viewer in list(self._viewers.values()))

    def join(self) -> Viewer | None:
        """Add a viewer, on its event loop; None if the limit is reached."""
        with self._lock:
            if len(self._viewers) >= self.options.viewers:
                return None
            self._num_joined += 1
            viewer = self._viewers[self._num_joined] = Viewer(self._num_joined)
            if self._state.ended:
                viewer.close()
        self._tell("viewers", self.num_viewers, newest_of="viewers")
        self._pictures.again()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        with self._lock:
            self._viewers.pop(viewer.number, None)
        self.camera.release(viewer.number)
        self._tell("viewers", self.num_viewers, newest_of="viewers")

    def state_for(self, viewer: Viewer) -> str:
        """The complete state, for a viewer that joins or fell behind."""
        return _message("state", viewer.with_state(lambda: self._snapshot(viewer)))

    def tell_one(self, viewer: Viewer, kind: str, value: Any) -> None:
        """Send one viewer a message; it replaces a waiting one of the same kind."""
        viewer.put(_message(kind, value), newest_of=kind)

    def _snapshot(self, viewer: Viewer) -> dict[str, Any]:
        with self._lock:
            state = self._state.to_json()
        limits = self.camera.limits
        return state | {
            "viewers": self.num_viewers,
            "camera": self._camera_of(viewer),
            "limits": {"bytes": limits.max_bytes, "side": limits.longest_side, "fps": limits.fps},
        }

    def _camera_of(self, viewer: Viewer) -> str:
        """The viewer whose camera is in use: 'you', 'other' or 'nobody'."""
        owner = self.camera.owner
        return "nobody" if owner is None else "you" if owner == viewer.number else "other"

    def _tell(self, kind: str, value: Any, *, newest_of: str | None = None) -> None:
        if value is None:
            return
        viewers = list(self._viewers.values())
        if viewers:
            message = _message(kind, value)
            for viewer in viewers:
                viewer.put(message, newest_of=newest_of)

    def _tell_camera(self) -> None:
        for viewer in list(self._viewers.values()):
            self.tell_one(viewer, "camera", self._camera_of(viewer))

    def _show(self, picture: bytes) -> None:
        for viewer in list(self._viewers.values()):
            viewer.show(picture)


def _message(kind: str, value: Any) -> str:
    return json.dumps({"type": kind, "value": finite(value)}, allow_nan=False)
