"""Ctrl-C before any line of a question: it leaves no trace, or the question was kept whole if it was to be kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines import PVCStream

from .doubles import lines_of
from .test_fork import FRAMES, bundle_of, pushed

CALLS: dict[str, Callable[[PVCStream], object]] = {
    "ask": lambda stream: stream.ask("what?", max_new_tokens=2),
    "keep": lambda stream: stream.ask("what?", max_new_tokens=2, keep=True),
    "score": lambda stream: stream.score("what?", [7]),
}


@pytest.mark.parametrize(
    ("call", "name"), [("ask", "rows concat host"), ("keep", "aliased split host"), ("score", "aliased split host")]
)
def test_an_interrupted_question_leaves_no_trace_or_was_kept_whole(call: str, name: str, tmp_path: Path) -> None:
    """The stream has a waiting frame: afterwards it still waits, or was taken in."""
    bundle = bundle_of(name, tmp_path)
    stream = pushed(PVCStream(bundle, clock="run-on", ingest="lazy"), FRAMES[:1])
    asked = stream.fork()
    num_lines = lines_of(lambda: CALLS[call](asked))
    expected = {told(stream.fork()), told(asked)}
    found = set()
    for at in range(1, num_lines + 1):
        struck = stream.fork()
        with pytest.raises(KeyboardInterrupt):
            lines_of(lambda struck=struck: CALLS[call](struck), interrupt_at=at)  # type: ignore[misc]
        assert (struck.num_frames, struck.num_waiting) in {(1, 0), (1, 1)}
        found.add(told(struck))
        assert found <= expected, f"line {at} of {num_lines}"
    assert found == expected and len(expected) == (2 if call == "keep" else 1)


def told(stream: PVCStream) -> tuple[Any, ...]:
    return stream.context_rows, stream.context.pending, stream.score("and now?", []).tobytes()
