"""Sessions that fail on request, as hardware and arithmetic do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from engines.bundle import Bundle
from engines.errors import NonFiniteError
from engines.memory import Tensor
from engines.session import Session, Wrapped

ERRORS: dict[str, type[BaseException]] = {
    "lost": RuntimeError,
    "interrupt": KeyboardInterrupt,
    "overflow": NonFiniteError,
}
"""The exception a stream raises for each kind of failure of a Struck session."""
TRACED = tuple(f"engines/{name}.py" for name in ("stream", "context", "language", "vision", "cache"))


def with_sessions(bundle: Bundle, **sessions: Session) -> Bundle:
    """Return the bundle with other sessions for some of its graphs."""
    return replace(bundle, sessions={**bundle.sessions, **sessions})


class Struck(Wrapped):
    """A session that, once armed, fails at its nth run from then on: with an exception, or by returning NaN."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, self._strike)
        self._left, self._error = 0, ""

    @property
    def num_runs_left(self) -> int:
        """Runs until it fails; 0 or less once it has failed."""
        return self._left

    def arm(self, error: str, at: int) -> None:
        self._error, self._left = error, at

    def _strike(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._left -= 1
        if self._left == 0 and self._error == "interrupt":
            raise KeyboardInterrupt
        if self._left == 0 and self._error == "lost":
            raise RuntimeError("device lost")
        outputs = dict(session.run(inputs))
        if self._left == 0 and self._error == "overflow":
            name = next(tensor.name for tensor in self.spec.outputs if tensor.name not in self.spec.aliases)
            outputs[name] = np.full_like(outputs[name], np.nan)
        return outputs


def struck(bundle: Bundle, graph: str, error: str = "", at: int = 0) -> tuple[Bundle, Struck]:
    """Return the bundle with a Struck session for one graph. It is armed if `error` is given."""
    session = Struck(bundle.sessions[graph])
    session.arm(error, at)
    return with_sessions(bundle, **{graph: session}), session


def poisoned(bundle: Bundle, graph: str, at: int) -> Bundle:
    """Make the graph's nth run return infinity in one row of its last output, as a float16 overflow would."""
    runs = count(1)

    def poison(session: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs, spec = session.run(inputs), session.spec
        if next(runs) != at:
            return outputs
        if spec.aliases:  # the graph has already written it into the cache
            state = spec.states[-1]
            state.as_rows(inputs[state.input])[0, inputs["write_index"][0]] = np.inf
            return outputs
        name = spec.outputs[-1].name
        bad = np.array(outputs[name])
        bad.flat[1] = np.inf
        return outputs | {name: bad}

    return with_sessions(bundle, **{graph: Wrapped(bundle.sessions[graph], poison)})


def lines_of(call: Callable[[], object], *, interrupt_at: int | None = None) -> int:
    """Count the lines a call runs in TRACED modules; raise Ctrl-C before line `interrupt_at`."""
    num_lines = 0

    def line(frame: Any, event: str, _: object) -> Any:
        nonlocal num_lines
        if event == "line":
            num_lines += 1
            if num_lines == interrupt_at:
                raise KeyboardInterrupt
        return line

    def enter(frame: Any, event: str, _: object) -> Any:
        return line if frame.f_code.co_filename.endswith(TRACED) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return num_lines
